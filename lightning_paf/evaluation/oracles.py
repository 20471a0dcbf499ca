"""Classifiers whose exact robust accuracy is known, to hold attacks against."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import Attack
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import misclassified
from lightning_paf.types import Norm

COUNT = 40
"""Images of an oracle."""

_SHARPNESS = 4.0  # of logits: enough that the cross-entropy follows the nearest rival, too little to make it flat

Floats = NDArray[np.float64]

SIZE = 8
"""Height and width of the images, which have one channel."""

PIXELS = SIZE * SIZE
_FEATURES = 0.12  # largest feature of an image on the plane
_ROUNDING = 1e-4
"""What a perturbation may exceed `eps` by, as a share of it: pixels are float32, and a norm adds their errors up."""


@dataclass(frozen=True)
class Oracle:
    """A classifier and correctly classified images whose distance to the nearest misclassified image is known.

    Attributes:
        name: For tables.
        model: Images (N, 1, 8, 8) in [0, 1] to logits (N, C).
        x: Images (n, 1, 8, 8) float32 in [0, 1].
        y: Labels (n,) int64.
        radii: Size (n,) of the smallest perturbation within [0, 1] that changes the prediction, for each norm.
    """

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    radii: Mapping[Norm, Floats]

    def case(self, norm: Norm, margin: float = 0.03) -> "Case":
        """A threat model that half of the images withstand.

        Args:
            norm: How a perturbation is measured.
            margin: Images whose radius differs from `eps` by less than this share of it are left out: there a verdict
                would be a matter of rounding.
        """
        radii = self.radii[norm]
        eps = float(np.median(radii))
        clear = np.abs(radii - eps) > margin * eps
        chosen = torch.from_numpy(clear)
        return Case(self, norm, eps, self.x[chosen], self.y[chosen], torch.from_numpy(radii[clear]))


@dataclass(frozen=True)
class Case:
    """An oracle under one threat model.

    Attributes:
        oracle: Whose model is attacked.
        norm: How a perturbation is measured.
        eps: Largest perturbation.
        x: Images (n, 1, 8, 8).
        y: Labels (n,).
        radii: Size of the smallest perturbation that changes the prediction, (n,).
    """

    oracle: Oracle
    norm: Norm
    eps: float
    x: Tensor
    y: Tensor
    radii: Tensor

    @property
    def robust(self) -> Tensor:
        """Whether no perturbation of at most `eps` changes the prediction, (n,) bool."""
        return self.radii > self.eps

    def check(self, attack: Attack, reach: float = 1.0) -> "Finding":
        """Compare what an attack breaks with what can be broken.

        Args:
            attack: With the threat model of this case.
            reach: Share of `eps` up to which the attack must break every image; below 1 for one that is known to fall
                short of the optimum.
        """
        started = time.perf_counter()
        found = attack(self.oracle.model, self.x, self.y)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            broken = misclassified(self.oracle.model(found), self.y)
        size = geometry_of(self.norm).size(found - self.x)
        outside = (size > self.eps * (1 + _ROUNDING)) | ((found < 0) | (found > 1)).flatten(1).any(1) | size.isnan()
        return Finding(
            total=len(self.y),
            robust=int(self.robust.sum()),
            survived=int((~broken).sum()),
            missed=int((~broken & (self.radii < reach * self.eps)).sum()),
            impossible=int((outside | (broken & self.robust)).sum()),
            seconds=seconds,
        )


@dataclass(frozen=True)
class Finding:
    """What an attack made of a case.

    Attributes:
        total: Images attacked.
        robust: Images that no perturbation can break.
        survived: Images that the attack did not break.
        missed: Images that the attack had to break and did not.
        impossible: Images that left the ball or the pixel range, or were broken although nothing within can do that.
        seconds: Time inside the attack.
    """

    total: int
    robust: int
    survived: int
    missed: int
    impossible: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the attack broke all that can be broken, and nothing else."""
        return self.missed == 0 and self.impossible == 0


def oracles() -> tuple[Oracle, ...]:
    """All oracles; their seeds are such that no local optimum is in the way of a single gradient attack."""
    return (linear(2), linear(10, seed=9), linear(10, seed=7, saturated=True), plane(seed=2))


def linear(classes: int, count: int = COUNT, *, saturated: bool = False, seed: int = 0) -> Oracle:
    """A linear classifier with random weights.

    The images that go to class j lie in a half-space, so the radius is the smallest over j of the distance to it. A
    perturbation at the limit raises `z_j - z_y` by `sum |w| delta` with `w = w_j - w_y` and `0 <= delta <= room`, the
    room that a pixel has in its direction. Where no pixel reaches black or white this is the familiar
    `(z_y - z_j) / ||w||` in the dual norm.

    Args:
        classes: Number of classes.
        count: Images.
        saturated: Many pixels are black or white, and cannot move further. Otherwise all are grey.
        seed: Of weights and images.
    """
    random = np.random.default_rng([seed, classes, saturated])
    directions = random.standard_normal((classes, PIXELS))
    pattern = directions[np.arange(count) % classes] * random.random((count, 1))
    contrast = 1.5 if saturated else 0.2
    x = (0.5 + contrast * (random.random((count, PIXELS)) - 0.5 + 0.2 * pattern)).clip(0, 1).astype(np.float32)
    weight = (_SHARPNESS * directions).astype(np.float32)
    bias = (-0.5 * weight.sum(1)).astype(np.float32)  # no class is preferred on a grey image
    model = nn.Sequential(nn.Flatten(), _layer(weight, bias))
    logits = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    y = logits.argmax(1)
    rise = weight[None].astype(np.float64) - weight[y][:, None]  # (n, classes, pixels): gradient of z_j - z_y
    room = np.where(rise > 0, 1 - x[:, None], x[:, None])
    lead = logits[np.arange(count), y][:, None] - logits
    radii: dict[Norm, Floats] = {}
    for norm, reach in _REACH.items():
        distances = reach(np.abs(rise), room, lead)
        distances[np.arange(count), y] = np.inf
        radii[norm] = distances.min(1)
    name = f"linear, {classes} classes" + (", saturated" if saturated else "")
    return Oracle(name, model.eval(), torch.from_numpy(x).view(-1, 1, SIZE, SIZE), torch.from_numpy(y), radii)


def _fill(slope: Floats, room: Floats, lead: Floats, speed: Floats) -> Floats:
    """Pixels `min(time * speed, room)` (..., pixels) at the time when `slope * pixels` adds up to `lead` (...)."""
    slowest = np.where(speed > 0, room / np.where(speed > 0, speed, 1), 0).max(-1)
    low, high = np.zeros_like(slowest), slowest
    for _ in range(100):  # halvings; 52 exhaust a float64
        middle = (low + high) / 2
        short = (slope * np.minimum(middle[..., None] * speed, room)).sum(-1) < lead
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.asarray(np.minimum(high[..., None] * speed, room))


def _reach_linf(slope: Floats, room: Floats, lead: Floats) -> Floats:
    """All pixels move at the same speed until they are full."""
    delta = _fill(slope, room, lead, np.ones_like(slope))
    return np.where((slope * room).sum(-1) < lead, np.inf, delta.max(-1))


def _reach_l2(slope: Floats, room: Floats, lead: Floats) -> Floats:
    """Pixels move in proportion to their slopes until they are full (the conditions of Karush, Kuhn and Tucker)."""
    delta = _fill(slope, room, lead, slope)
    return np.where((slope * room).sum(-1) < lead, np.inf, np.sqrt((delta**2).sum(-1)))


def _reach_l1(slope: Floats, room: Floats, lead: Floats) -> Floats:
    """One pixel after the other, the steepest first."""
    order = np.argsort(-slope, axis=-1)
    slope, gain = np.take_along_axis(slope, order, -1), np.take_along_axis(slope * room, order, -1)
    wanted = np.minimum(np.maximum(lead[..., None] - (gain.cumsum(-1) - gain), 0), gain)
    return np.where(gain.sum(-1) < lead, np.inf, (wanted / np.where(slope > 0, slope, 1)).sum(-1))


_REACH: Mapping[Norm, Callable[[Floats, Floats, Floats], Floats]] = {
    "linf": _reach_linf,
    "l2": _reach_l2,
    "l1": _reach_l1,
}


def plane(count: int = COUNT, *, seed: int = 0) -> Oracle:
    """A ReLU network with two hidden layers and 4 classes, all of whose linear pieces are enumerated.

    Its first layer reduces an image to two features, the contrasts between top and bottom in its left and in its right
    half. The rest is a function on a plane: every pattern of active ReLUs is a polygon, and so is the part of it where
    a class wins. The radius of an image is the distance of its features to the nearest polygon of another class. A
    step of a feature is cheapest when its 32 pixels share it, which gives the factors between the distances of features
    and of images.

    Args:
        count: Images.
        seed: Of weights and images.
    """
    network, random = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    layers = _plane_network(network)
    block = PIXELS // 2
    row, column = np.divmod(np.arange(PIXELS), SIZE)
    owner = (column >= SIZE // 2).astype(int)  # left and right half of the image
    signs = np.where(row < SIZE // 2, 1.0, -1.0)  # upper half against lower half
    reduce = np.stack([signs * (owner == 0), signs * (owner == 1)]) / block
    corners = _FEATURES * random.uniform(-1, 1, (count, 2))
    texture = 0.05 * random.uniform(-1, 1, (count, PIXELS))
    x = (0.5 + signs * corners[:, owner] + texture).astype(np.float32)  # in [0.33, 0.67]: no pixel gets to its limit
    features = (x.astype(np.float64) - 0.5) @ reduce.T

    model = _relu_network([(reduce, -0.5 * reduce.sum(1)), *layers])
    winner = _values(layers, features).argmax(1)
    factors: Mapping[Norm, float] = {"linf": 1, "l2": np.sqrt(block), "l1": block}
    regions = _regions(layers)
    radii: dict[Norm, Floats] = {}
    for norm, factor in factors.items():
        distances = np.full(count, np.inf)
        for wins, polygon in regions:
            near = _distance(features, polygon, norm)
            distances = np.where(winner == wins, distances, np.minimum(distances, near))
        radii[norm] = factor * distances
    shaped = torch.from_numpy(x).view(-1, 1, SIZE, SIZE)
    return Oracle("ReLU network on a plane", model, shaped, torch.from_numpy(winner), radii)


_Layer = tuple[Floats, Floats]
"""Weight (outputs, inputs) and bias (outputs,) of a linear layer."""


def _plane_network(random: np.random.Generator) -> list[_Layer]:
    """Layers 2 - 8 - 6 - 4 whose kinks run through the features of the images, and whose classes share these out.

    The first weights point into all directions, so that some ReLU is active everywhere. Values are float32 numbers.
    """
    angles = 2 * np.pi * (np.arange(8) + 0.5 * random.random(8)) / 8
    weights = [
        np.stack([np.cos(angles), np.sin(angles)], axis=1),
        random.standard_normal((6, 8)),
        20 * random.standard_normal((4, 6)),
    ]
    biases = [0.1 * random.random(8), 0.1 * random.random(6), np.zeros(4)]
    *hidden, last = [(_float32(weight), _float32(bias)) for weight, bias in zip(weights, biases, strict=True)]
    everywhere = _FEATURES * random.uniform(-1, 1, (1000, 2))
    return [*hidden, (last[0], _float32(-_values([*hidden, last], everywhere).mean(0)))]


def _float32(values: Floats) -> Floats:
    return values.astype(np.float32).astype(np.float64)


def _relu_network(layers: list[_Layer]) -> nn.Module:
    """Flatten, then linear layers, with a ReLU after all but the first and the last."""
    modules: list[nn.Module] = [nn.Flatten()]
    for place, (weight, bias) in enumerate(layers):
        modules += [_layer(weight, bias)] if place in (0, len(layers) - 1) else [_layer(weight, bias), nn.ReLU()]
    return nn.Sequential(*modules).eval()


def _layer(weight: NDArray[Any], bias: NDArray[Any]) -> nn.Linear:
    """A linear layer in float32, made without the random numbers that `nn.Linear` would draw."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    state = {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}
    layer.load_state_dict(state, assign=True)
    return layer


def _values(layers: list[_Layer], points: Floats) -> Floats:
    """Logits (n, classes) at points (n, 2)."""
    for weight, bias in layers[:-1]:
        points = np.maximum(points @ weight.T + bias, 0)
    weight, bias = layers[-1]
    return np.asarray(points @ weight.T + bias)


def _regions(layers: list[_Layer], extent: float = 1.0) -> list[tuple[int, Floats]]:
    """The polygons where a class wins, with that class: together they cover the square [-extent, extent]^2."""
    square = extent * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    pieces = [(square, np.eye(2), np.zeros(2))]  # a polygon, and what the layers so far compute on it
    for weight, bias in layers[:-1]:
        pieces = [
            (part, slope * active[:, None], offset * active)
            for polygon, before, shift in pieces
            for slope, offset in [(weight @ before, weight @ shift + bias)]
            for part in _split(polygon, slope, offset)
            for active in [(slope @ part.mean(0) + offset > 0).astype(float)]
        ]
    weight, bias = layers[-1]
    found = []
    for polygon, before, shift in pieces:
        slope, offset = weight @ before, weight @ shift + bias
        for wins in range(len(offset)):
            part = polygon
            for other in range(len(offset)):
                part = _clip(part, slope[wins] - slope[other], offset[wins] - offset[other])
            if len(part):
                found.append((wins, part))
    return found


def _split(polygon: Floats, slopes: Floats, offsets: Floats) -> list[Floats]:
    """The parts into which lines `slope . p + offset = 0` cut a polygon."""
    parts = [polygon]
    for slope, offset in zip(slopes, offsets, strict=True):
        halves = [_clip(part, sign * slope, sign * offset) for part in parts for sign in (1, -1)]
        parts = [half for half in halves if len(half)]
    return parts


def _clip(polygon: Floats, slope: Floats, offset: float) -> Floats:
    """The part (m, 2) of a convex polygon (k, 2) with `slope . p + offset >= 0`; m = 0 where it has no area."""
    kept: list[Floats] = []
    height = polygon @ slope + offset
    for place, corner in enumerate(polygon):
        before, here = height[place - 1], height[place]
        if (before < 0) != (here < 0):
            kept.append(corner + here / (here - before) * (polygon[place - 1] - corner))
        if here >= 0:
            kept.append(corner)
    clipped = np.array(kept).reshape(-1, 2)
    x, y = clipped.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    return clipped if area > 1e-14 else clipped[:0]


def _distance(points: Floats, polygon: Floats, norm: Norm) -> Floats:
    """Distance (n,) of points (n, 2) outside a convex polygon to it.

    On an edge `a + t (b - a)` the distance is convex in t. Its minimum is at an end; for l2 also at the foot of the
    perpendicular; for l1 and linf also where a coordinate of the difference, their sum or their difference is zero.
    """
    start = polygon[None] - points[:, None]  # (n, edges, 2)
    edge = (np.roll(polygon, -1, axis=0) - polygon)[None]
    down = [(start * edge).sum(-1), *_coordinates(start)]
    across = [(edge * edge).sum(-1), *_coordinates(edge)]
    times = [np.clip(-d / np.where(a == 0, 1, a), 0, 1) for d, a in zip(down, across, strict=True)]
    times += [np.zeros_like(times[0]), np.ones_like(times[0])]
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    lengths = [np.linalg.norm(start + time[..., None] * edge, ord=order, axis=-1).min(1) for time in times]
    return np.asarray(np.min(lengths, axis=0))


def _coordinates(vectors: Floats) -> list[Floats]:
    """x, y, x + y and x - y of vectors (..., 2)."""
    x, y = vectors[..., 0], vectors[..., 1]
    return [x, y, x + y, x - y]
