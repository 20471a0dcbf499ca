"""Robust accuracy over the size of the perturbation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.analysis.base import Progress
from lightning_paf.attacks import Attack, radius_text
from lightning_paf.attacks.sub_attack import run_sub_attack
from lightning_paf.evaluation import Samples
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import predicted
from lightning_paf.nn.modes import frozen
from lightning_paf.types import Forward, Norm, Radius

AttackAt = Callable[[Radius], Attack]
"""Makes the attack for one eps."""


class MinimumNormAttack(Protocol):
    """An attack that searches small perturbations instead of ones of a given size."""

    norm: Norm

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Adversarial images (N, C, H, W), and their distances (N,)."""

    def describe(self) -> dict[str, Any]:
        """The settings as plain values."""


@dataclass(frozen=True)
class SecurityCurve:
    """Robust accuracy at every eps of a grid, from one bracketed radius per sample.

    Attributes:
        norm: Norm of eps.
        search: Method and attack as plain values.
        grid: The eps, positive and increasing.
        ids: (n,) Numbers of the samples.
        survived: (n,) Largest eps up to which the search counts the sample as robust; 0 for a clean error.
        fooled: (n,) Smallest eps at which a perturbation fooled the model; 0 for a clean error, infinite where none
            was found.
    """

    norm: Norm
    search: Mapping[str, Any]
    grid: tuple[Radius, ...]
    ids: NDArray[np.int64]
    survived: NDArray[np.float64]
    fooled: NDArray[np.float64]

    def at(self, eps: Radius) -> Accuracy:
        """Fraction of the samples for which no perturbation up to `eps` was found."""
        return exact_accuracy(int(np.count_nonzero(self.fooled > float(eps))), len(self.ids))

    @property
    def points(self) -> list[tuple[Radius, Accuracy]]:
        """The curve: clean accuracy at 0, then the grid."""
        return [(eps, self.at(eps)) for eps in (0, *self.grid)]

    @property
    def area(self) -> float:
        """Mean robust accuracy over all eps from 0 to the largest one, in [0, 1]; lines between the points."""
        slices = ((wide - eps) * (high.value + low.value) / 2 for (eps, high), (wide, low) in pairwise(self.points))
        return float(sum(slices) / self.grid[-1])

    def content(self) -> dict[str, Any]:
        """Everything as plain values; null for an infinite radius."""
        points = [
            {"eps": radius_text(eps), "eps_value": float(eps), "robust": a.correct, "total": a.total}
            | {"accuracy": a.value, "low": a.low, "high": a.high}
            for eps, a in self.points
        ]
        radii = {"survived": self.survived, "broken": self.fooled}
        return {
            "norm": self.norm,
            "search": dict(self.search),
            "confidence": 0.95,
            "points": points,
            "area": self.area,
            "ids": self.ids.tolist(),
            **{name: [r if math.isfinite(r) else None for r in values.tolist()] for name, values in radii.items()},
        }


def check_grid(grid: Sequence[Radius]) -> tuple[Radius, ...]:
    """Refuse eps that are none or do not increase from above 0.

    Raises:
        ValueError: Such a grid.
    """
    if not grid or not all(small < large for small, large in pairwise((0, *grid))):
        shown = ",".join(radius_text(eps) for eps in grid) or "none"
        raise ValueError(f"A grid of eps must increase from above 0, got {shown}. Pass e.g. 2/255,4/255.")
    return tuple(grid)


def bisection(
    model: nn.Module,
    samples: Samples,
    attack: AttackAt,
    grid: Sequence[Radius],
    *,
    batch_size: int = 256,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> SecurityCurve:
    """Bisect a grid of eps for every sample with an attack of fixed eps.

    In each of about log2(grid) rounds, all samples whose radius may lie around the same eps are attacked together. A
    sample fooled at one eps counts as fooled at all larger ones, which the perturbation proves. A sample robust at one
    eps counts as robust at all smaller ones, which `recheck` tests.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits.
        samples: The samples to attack, at least one.
        attack: Makes the attack for one eps.
        grid: The eps of the curve, positive and increasing.
        batch_size: Samples attacked at once.
        seed: Seed of the attacks.
        progress: Called with a line for each step.

    Raises:
        ValueError: No sample, or a grid that is empty or does not increase from above 0.
    """
    radii = np.array([0.0, *map(float, check_grid(grid)), math.inf])
    survived = np.zeros(len(samples), dtype=np.int64)
    fooled = np.where(correct(model, samples, batch_size), len(radii) - 1, 0)
    rounds = math.ceil(math.log2(len(radii) - 1))
    for turn in range(rounds):
        middle = (survived + fooled) // 2
        unsure = fooled - survived > 1
        for index in np.unique(middle[unsure]):
            eps = grid[index - 1]
            progress(f"bisection, round {turn + 1} of {rounds}, eps {radius_text(eps)}")
            chosen = np.flatnonzero(unsure & (middle == index))
            found = fooled_by(model, attack(eps), samples, chosen, batch_size, seed)
            fooled[chosen[found]] = index
            survived[chosen[~found]] = index
    example = attack(grid[-1])
    search = {"method": "bisection", **_without_eps(example.describe())}
    return SecurityCurve(example.norm, search, tuple(grid), samples.ids, radii[survived], radii[fooled])


def minimum_norm(
    model: nn.Module,
    samples: Samples,
    attack: MinimumNormAttack,
    grid: Sequence[Radius],
    *,
    batch_size: int = 256,
    progress: Progress = lambda _: None,
) -> SecurityCurve:
    """Take the size of the smallest perturbation that a minimum-norm attack finds.

    The arguments and errors are those of `bisection`.
    """
    check_grid(grid)
    right = correct(model, samples, batch_size)
    radius = np.where(right, math.inf, 0.0)
    chosen = np.flatnonzero(right)
    for first in range(0, len(chosen), batch_size):
        part = chosen[first : first + batch_size]
        progress(f"minimum norm, {first + len(part)} of {len(chosen)} samples")
        x, y = samples.fetch(samples.ids[part])
        with frozen(model), torch.enable_grad():
            x_adv = attack.minimum(model, x, y)[0].detach()
        fooled = (_predictions(model, x_adv) != y).cpu().numpy()
        distance = geometry_of(attack.norm).size(x_adv - x).double().cpu().numpy()
        radius[part[fooled]] = distance[fooled]
    search = {"method": "minimum-norm", **_without_eps(attack.describe())}
    return SecurityCurve(attack.norm, search, tuple(grid), samples.ids, radius, radius)


def _without_eps(settings: Any) -> Any:
    """The settings of an attack, and of those inside it, that hold for the whole grid."""
    if isinstance(settings, list):
        return [_without_eps(part) for part in settings]
    if isinstance(settings, dict):
        return {
            name: _without_eps(value) for name, value in settings.items() if name not in ("eps", "eps_value", "norm")
        }
    return settings


def fooled_by(
    model: nn.Module, attack: Attack, samples: Samples, chosen: NDArray[np.int64], batch_size: int, seed: int
) -> NDArray[np.bool_]:
    """For the samples at the indices `chosen`, classified correctly: whether any sub-attack fools the model."""
    search = attack.search_model(model)
    found = np.zeros(len(chosen), dtype=np.bool_)
    for first in range(0, len(chosen), batch_size):
        x, y = samples.fetch(samples.ids[chosen[first : first + batch_size]])
        robust = torch.ones(len(y), dtype=torch.bool, device=y.device)
        for sub_attack in attack.sub_attacks():
            robust[robust.clone()] = ~run_sub_attack(sub_attack, search, x[robust], y[robust], seed + first)[1]
        found[first : first + batch_size] = ~robust.cpu().numpy()
    search.warn_of_gradients()
    return found


def correct(model: nn.Module, samples: Samples, batch_size: int) -> NDArray[np.bool_]:
    """Whether the model classifies each clean sample correctly, (n,).

    Raises:
        ValueError: No sample.
    """
    if not len(samples):
        raise ValueError("A security curve needs at least one sample, got none. Pass some.")
    found = []
    for first in range(0, len(samples), batch_size):
        x, y = samples.fetch(samples.ids[first : first + batch_size])
        found.append((_predictions(model, x) == y).cpu().numpy())
    return np.concatenate(found)


@torch.no_grad()
def _predictions(model: nn.Module, x: Tensor) -> Tensor:
    with frozen(model):
        return predicted(model(x))
