"""Classifiers whose exact robust accuracy is known, to check attacks against. Images are (n, 1, 8, 8) in [0, 1]."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import Attack
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import misclassified
from lightning_paf.types import Norm

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
SIZE, PIXELS = 8, 64
COUNT = 40
MARGIN = 0.03  # relative distance of radius and eps below which rounding decides; such images are left out
FEATURES = 0.12  # largest feature of an image of `plane`
ROUNDING = 1e-4  # excess over eps, relative to it, that float32 pixels explain

Floats = NDArray[np.float64]


class Check(NamedTuple):
    """Errors of an attack.

    missed: images that the attack had to fool and did not.
    impossible: images outside the ball or the pixel range, or fooled although no perturbation within eps can do that.
    """

    missed: int
    impossible: int


@dataclass(frozen=True)
class Case:
    """A threat model under which half of the images are robust; all are classified correctly.

    radii: (n,), size of the smallest perturbation within [0, 1] that changes the prediction.
    """

    model: nn.Module
    norm: Norm
    eps: float
    x: Tensor
    y: Tensor
    radii: Tensor

    def check(self, attack: Attack, fraction: float = 1.0) -> Check:
        """Compare the images that an attack fools with those that can be fooled.

        fraction: of eps, up to which the attack must fool every image; below 1 for an attack that does not reach
        the optimum.
        """
        found = attack(self.model, self.x, self.y)
        with torch.no_grad():
            fooled = misclassified(self.model(found), self.y)
        size = geometry_of(self.norm).size(found - self.x)
        inside = (size <= self.eps * (1 + ROUNDING)) & ((found >= 0) & (found <= 1)).flatten(1).all(1)
        missed = ~fooled & (self.radii < fraction * self.eps)
        impossible = ~inside | (fooled & (self.radii > self.eps))
        return Check(int(missed.sum()), int(impossible.sum()))


@dataclass(frozen=True)
class Oracle:
    """A classifier, images (n, 1, 8, 8) that it classifies correctly, and for each norm their radii (n,)."""

    model: nn.Module
    x: Tensor
    y: Tensor
    radii: Mapping[Norm, Floats]

    def case(self, norm: Norm) -> Case:
        """The threat model whose eps is the median radius."""
        radii = torch.from_numpy(self.radii[norm])
        eps = float(np.median(radii))
        clear = (radii - eps).abs() > MARGIN * eps
        return Case(self.model, norm, eps, self.x[clear], self.y[clear], radii[clear])


@cache
def linear(classes: int, count: int = COUNT, *, saturated: bool = False, seed: int = 0) -> Oracle:
    """A linear classifier with random weights; the seeds used here have no local optimum that stops an attack.

    The images that go to class j lie in a half-space, so the radius is the smallest over j of the distance to it. A
    perturbation at the limit raises `z_j - z_y` by `sum |w| delta` with `w = w_j - w_y` and `0 <= delta <= room`, the
    distance that a pixel can move in its direction. Where no pixel reaches black or white this is the familiar
    `(z_y - z_j) / ||w||` in the dual norm. With `saturated`, many pixels are black or white and cannot move further.
    """
    random = np.random.default_rng([seed, classes, saturated])
    directions = random.standard_normal((classes, PIXELS))
    pattern = directions[np.arange(count) % classes] * random.random((count, 1))
    contrast = 1.5 if saturated else 0.2
    x = (0.5 + contrast * (random.random((count, PIXELS)) - 0.5 + 0.2 * pattern)).clip(0, 1).astype(np.float32)
    weight = (4 * directions).astype(np.float32)  # steep enough that the cross-entropy follows the nearest rival
    bias = (-0.5 * weight.sum(1)).astype(np.float32)  # no class is preferred on a grey image
    logits = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    y = logits.argmax(1)
    rise = weight[None].astype(np.float64) - weight[y][:, None]  # (n, classes, pixels): gradient of z_j - z_y
    room = np.where(rise > 0, 1 - x[:, None], x[:, None])
    lead = logits[np.arange(count), y][:, None] - logits
    radii: dict[Norm, Floats] = {}
    for norm in NORMS:
        distances = smallest_size(norm, np.abs(rise), room, lead)
        distances[np.arange(count), y] = np.inf
        radii[norm] = distances.min(1)
    return Oracle(network(layer(weight, bias)), images(x), torch.from_numpy(y), radii)


def smallest_size(norm: Norm, slope: Floats, room: Floats, lead: Floats) -> Floats:
    """Smallest size (...) of `0 <= delta <= room` (..., pixels) with `slope . delta = lead`; infinite if there is none.

    l1 takes one pixel after the other, the steepest first. Otherwise all pixels move at the same time until they are
    full: at one speed for linf, each in proportion to its slope for l2 (the Karush-Kuhn-Tucker conditions).
    """
    if norm == "l1":
        order = np.argsort(-slope, axis=-1)
        steep, gain = np.take_along_axis(slope, order, -1), np.take_along_axis(slope * room, order, -1)
        wanted = np.clip(lead[..., None] - (gain.cumsum(-1) - gain), 0, gain)
        size = (wanted / np.where(steep > 0, steep, 1)).sum(-1)
    else:
        speed = np.ones_like(slope) if norm == "linf" else slope
        low, high = np.zeros_like(lead), (room / np.where(speed > 0, speed, np.inf)).max(-1)
        for _ in range(100):  # halvings; 52 exhaust a float64
            middle = (low + high) / 2
            short = (slope * np.minimum(middle[..., None] * speed, room)).sum(-1) < lead
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        delta = np.minimum(high[..., None] * speed, room)
        size = delta.max(-1) if norm == "linf" else np.sqrt((delta**2).sum(-1))
    return np.where((slope * room).sum(-1) < lead, np.inf, size)


@cache
def plane(count: int = COUNT, *, seed: int = 2) -> Oracle:
    """A ReLU network with two hidden layers and 4 classes on two features of the image.

    The features are the contrasts between top and bottom, in the left and in the right half. A grid in the plane of the
    features that is refined twice gives the radius up to 2 %, less than `MARGIN`. A change of a feature is smallest if
    all its 32 pixels change equally, hence the factors between the sizes of features and of images.
    """
    weights, random = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    row, column = np.divmod(np.arange(PIXELS), SIZE)
    right, signs = (column >= SIZE // 2).astype(int), np.where(row < SIZE // 2, 1.0, -1.0)
    reduce = signs * np.eye(2)[right].T / 32
    corners, texture = (bound * random.uniform(-1, 1, (count, n)) for bound, n in ((FEATURES, 2), (0.05, PIXELS)))
    x = images(0.5 + signs * corners[:, right] + texture)  # in [0.33, 0.67]: no pixel reaches black or white

    # The first weights point in all directions, so that some ReLU is active everywhere.
    angles = 2 * np.pi * (np.arange(8) + 0.5 * weights.random(8)) / 8
    first, second = np.stack([np.cos(angles), np.sin(angles)], 1), weights.standard_normal((6, 8))
    third = 20 * weights.standard_normal((4, 6))
    hidden = [layer(first, 0.1 * weights.random(8)), nn.ReLU(), layer(second, 0.1 * weights.random(6)), nn.ReLU()]
    everywhere = torch.from_numpy(FEATURES * weights.uniform(-1, 1, (1000, 2))).float()
    mean = (nn.Sequential(*hidden)(everywhere).detach().double().numpy() @ third.T).mean(0)
    head = nn.Sequential(*hidden, layer(third, -mean))
    reducer = network(layer(reduce, -0.5 * reduce.sum(1)))
    with torch.no_grad():
        features = reducer(x)
        y = head(features).argmax(1)
        factors: dict[Norm, float] = {"linf": 1, "l2": np.sqrt(32), "l1": 32}
        radii = {norm: factor * nearest_rival(head, features, y, norm) for norm, factor in factors.items()}
    return Oracle(network(*reducer[1:], *head), x, y, radii)


def nearest_rival(head: nn.Module, points: Tensor, y: Tensor, norm: Norm) -> Floats:
    """Distance (n,) of points (n, 2) to the nearest point of another class than y (n,)."""
    line = torch.linspace(-1, 1, 121)
    grid = torch.cartesian_prod(line, line)
    size = geometry_of(norm).size(grid)
    found = torch.full((len(points), 1), 3 * FEATURES)
    for _ in range(3):
        found *= 1.05
        rival = head(points[:, None] + found[:, None] * grid).argmax(2) != y[:, None]
        found *= size.where(rival, torch.inf).amin(1, keepdim=True)
    return found[:, 0].double().numpy()


def network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *layers).eval()


def layer(weight: NDArray[np.floating], bias: NDArray[np.floating]) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.load_state_dict(
        {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}, assign=True
    )
    return made


def images(pixels: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(pixels).float().view(-1, 1, SIZE, SIZE)


ORACLES = {
    "linear, 2 classes": lambda: linear(2),
    "linear, 10 classes": lambda: linear(10, seed=9),
    "linear, 10 classes, saturated": lambda: linear(10, seed=7, saturated=True),
    "ReLU network, 4 classes": plane,
}
