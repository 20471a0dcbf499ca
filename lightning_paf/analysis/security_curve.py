"""Robust accuracy over the size of the perturbation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import Attack, radius_text
from lightning_paf.attacks.sub_attack import run_sub_attack
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import predicted
from lightning_paf.nn.modes import frozen
from lightning_paf.types import Forward, Norm, Radius

AttackAt = Callable[[Radius], Attack]
"""Makes the attack for one eps."""

Progress = Callable[[str], None]
"""Is told in a few words what goes on."""

_OF_THE_GRID = ("eps", "eps_value", "norm")


def silent(text: str) -> None:
    """Progress for nobody."""


@dataclass(frozen=True)
class Radii:
    """How large a perturbation each sample withstands.

    Attributes:
        survived: (n,) Largest eps up to which the search takes the sample for robust; 0 for a clean error.
        broken: (n,) Smallest eps at which a perturbation was found that fools the model; 0 for a clean error, infinite
            where none was found.
    """

    survived: NDArray[np.float64]
    broken: NDArray[np.float64]


class RadiusSearch(ABC):
    """Finds the radius of every sample once, from which the accuracy at every eps follows.

    Args:
        grid: The eps to know the accuracy at, positive and increasing.
        norm: How eps is measured.
        batch_size: Samples attacked at once.

    Raises:
        ValueError: A grid that is empty or does not increase from above 0.
    """

    def __init__(self, grid: Sequence[Radius], norm: Norm, batch_size: int) -> None:
        if not grid or not all(small < large for small, large in pairwise((0, *grid))):
            shown = ",".join(radius_text(eps) for eps in grid) or "empty"
            raise ValueError(f"A grid of eps must increase from above 0, but is {shown}. Give e.g. 2/255,4/255.")
        self.grid = tuple(grid)
        self.norm = norm
        self.batch_size = batch_size

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Method and attack as plain values, for result files."""

    @abstractmethod
    def __call__(self, model: nn.Module, samples: Samples, progress: Progress = silent) -> Radii:
        """Search.

        Args:
            model: Images (N, C, H, W) in [0, 1] to logits.
            samples: What to attack.
            progress: Is told how far the search is.
        """


class Bisection(RadiusSearch):
    """Bisects a grid of eps for every sample with an attack of fixed eps.

    In each of about log2(grid) rounds, all samples whose radius may still lie around the same eps are attacked
    together. A sample broken at one eps counts as broken at all larger ones, which the perturbation that was found
    proves, and a sample that withstands one eps as robust at all smaller ones, which `recheck` looks at.

    Args:
        attack: Makes the attack for one eps.
        grid: The eps to know the accuracy at, positive and increasing.
        norm: That of the attack.
        batch_size: Samples attacked at once.
        seed: Of the attacks.

    Raises:
        ValueError: A grid that is empty or does not increase from above 0.
    """

    def __init__(
        self, attack: AttackAt, grid: Sequence[Radius], norm: Norm = "linf", batch_size: int = 256, seed: int = 0
    ) -> None:
        super().__init__(grid, norm, batch_size)
        self.attack = attack
        self.seed = seed

    def describe(self) -> dict[str, Any]:
        """Method and attack as plain values, for result files."""
        return {"method": "bisection", **_without_eps(self.attack(self.grid[-1]).describe())}

    def __call__(self, model: nn.Module, samples: Samples, progress: Progress = silent) -> Radii:
        """Search."""
        radii = np.array([0.0, *map(float, self.grid), math.inf])
        correct = right(model, samples, self.batch_size)
        survived = np.zeros(len(samples), dtype=np.int64)
        broken = np.where(correct, len(radii) - 1, 0)
        rounds = math.ceil(math.log2(len(radii) - 1))
        for turn in range(rounds):
            middle = (survived + broken) // 2
            unsure = broken - survived > 1
            for index in np.unique(middle[unsure]):
                eps = self.grid[index - 1]
                progress(f"bisection, round {turn + 1} of {rounds}, eps {radius_text(eps)}")
                places = np.flatnonzero(unsure & (middle == index))
                fooled = broken_by(model, self.attack(eps), samples, places, self.batch_size, self.seed)
                broken[places[fooled]] = index
                survived[places[~fooled]] = index
        return Radii(radii[survived], radii[broken])


class MinimumNormAttack(Protocol):
    """An attack that finds small perturbations rather than ones of a given size."""

    norm: Norm

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Adversarial images (N, C, H, W), and their distances (N,)."""

    def describe(self) -> dict[str, Any]:
        """The settings as plain values."""


class MinimumNorm(RadiusSearch):
    """Takes the size of the smallest perturbation that a minimum-norm attack finds.

    Args:
        attack: Finds it.
        grid: The eps to know the accuracy at, positive and increasing.
        batch_size: Samples attacked at once.

    Raises:
        ValueError: A grid that is empty or does not increase from above 0.
    """

    def __init__(self, attack: MinimumNormAttack, grid: Sequence[Radius], batch_size: int = 256) -> None:
        super().__init__(grid, attack.norm, batch_size)
        self.attack = attack

    def describe(self) -> dict[str, Any]:
        """Method and attack as plain values, for result files."""
        return {"method": "minimum-norm", **_without_eps(self.attack.describe())}

    def __call__(self, model: nn.Module, samples: Samples, progress: Progress = silent) -> Radii:
        """Search."""
        correct = right(model, samples, self.batch_size)
        radius = np.where(correct, math.inf, 0.0)
        places = np.flatnonzero(correct)
        for first in range(0, len(places), self.batch_size):
            part = places[first : first + self.batch_size]
            progress(f"minimum norm, {first + len(part)} of {len(places)} samples")
            x, y = samples.fetch(samples.ids[part])
            with frozen(model), torch.enable_grad():
                x_adv = self.attack.minimum(model, x, y)[0].detach()
            fooled = (_predictions(model, x_adv) != y).cpu().numpy()
            distance = geometry_of(self.norm).size(x_adv - x).double().cpu().numpy()
            radius[part[fooled]] = distance[fooled]
        return Radii(radius, radius)


@dataclass(frozen=True)
class SecurityCurve:
    """Robust accuracy at every eps of a grid, from one radius per sample.

    Attributes:
        norm: How eps is measured.
        search: What the search says of itself.
        grid: The eps, positive and increasing.
        ids: (n,) Which samples.
        radii: What each withstands.
    """

    norm: Norm
    search: Mapping[str, Any]
    grid: tuple[Radius, ...]
    ids: NDArray[np.int64]
    radii: Radii

    def at(self, eps: Radius) -> Accuracy:
        """Share of the samples for which no perturbation up to `eps` was found."""
        return exact_accuracy(int(np.count_nonzero(self.radii.broken > float(eps))), len(self.ids))

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
        """Everything as plain values."""
        points = [
            {"eps": radius_text(eps), "eps_value": float(eps), "robust": a.correct, "total": a.total}
            | {"accuracy": a.value, "low": a.low, "high": a.high}
            for eps, a in self.points
        ]
        return {
            "norm": self.norm,
            "search": dict(self.search),
            "confidence": 0.95,
            "points": points,
            "area": self.area,
            "ids": self.ids.tolist(),
            "survived": _finite(self.radii.survived),
            "broken": _finite(self.radii.broken),
        }


def security_curve(
    model: nn.Module, search: RadiusSearch, samples: Samples, progress: Progress = silent
) -> SecurityCurve:
    """Search the radii of samples and read the accuracies off them.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits.
        search: How to find the radii, and the grid of eps.
        samples: At least one.
        progress: Is told how far the search is.

    Raises:
        ValueError: No samples.
    """
    if not len(samples):
        raise ValueError("A curve needs samples, but got none. Give at least one.")
    return SecurityCurve(search.norm, search.describe(), search.grid, samples.ids, search(model, samples, progress))


def _finite(radii: NDArray[np.float64]) -> list[float | None]:
    """As a list; JSON knows no infinity."""
    return [radius if math.isfinite(radius) else None for radius in radii.tolist()]


def _without_eps(settings: Any) -> Any:
    """The settings of an attack, and of those inside it, that hold for the whole grid."""
    if isinstance(settings, list):
        return [_without_eps(part) for part in settings]
    if isinstance(settings, dict):
        return {name: _without_eps(value) for name, value in settings.items() if name not in _OF_THE_GRID}
    return settings


def broken_by(
    model: nn.Module, attack: Attack, samples: Samples, places: NDArray[np.int64], batch_size: int, seed: int
) -> NDArray[np.bool_]:
    """Which of the samples at some places, which the model has right, are broken by any stage of the attack."""
    search = attack.search_model(model)
    broken = np.zeros(len(places), dtype=np.bool_)
    for first in range(0, len(places), batch_size):
        x, y = samples.fetch(samples.ids[places[first : first + batch_size]])
        standing = torch.ones(len(y), dtype=torch.bool, device=y.device)
        for stage in attack.sub_attacks():
            standing[standing.clone()] = ~run_sub_attack(stage, search, x[standing], y[standing], seed + first)[1]
        broken[first : first + batch_size] = ~standing.cpu().numpy()
    search.warn_of_gradients()
    return broken


def right(model: nn.Module, samples: Samples, batch_size: int) -> NDArray[np.bool_]:
    """Which samples (n,) the model has right without an attack."""
    found = []
    for first in range(0, len(samples), batch_size):
        x, y = samples.fetch(samples.ids[first : first + batch_size])
        found.append((_predictions(model, x) == y).cpu().numpy())
    return np.concatenate(found)


@torch.no_grad()
def _predictions(model: nn.Module, x: Tensor) -> Tensor:
    with frozen(model):
        return predicted(model(x))
