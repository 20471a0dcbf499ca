"""Robust accuracy over the size of the perturbation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_paf.analysis.base import Progress
from lightning_paf.attacks import FAB, Attack, MinimalAttack, radius_text
from lightning_paf.attacks.probe import PROBES, Flags, probe, warn_of
from lightning_paf.evaluation import Accuracy, Evaluation, EvaluationResult, Outcome, Samples, exact_accuracy
from lightning_paf.evaluation.files import ResultFiles
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import frozen
from lightning_paf.types import Norm, Radius

AttackAt = Callable[[Radius], Attack]
"""Makes the attack for one eps."""


@dataclass(frozen=True)
class SecurityCurve:
    """Robust accuracy at every eps of a grid, from one bracketed radius per sample.

    Attributes:
        norm: Norm of eps.
        search: Method and attack as plain values.
        grid: The eps, positive and increasing.
        ids: (n,) Numbers of the samples.
        robust: (n,) Largest eps for which the search found no perturbation; 0 for a clean error.
        fooled: (n,) Smallest eps at which a perturbation fooled the model; 0 for a clean error, infinite where none
            was found.
        flags: Signs of an unreliable result; see `attacks.probe`.
    """

    norm: Norm
    search: Mapping[str, Any]
    grid: tuple[Radius, ...]
    ids: NDArray[np.int64]
    robust: NDArray[np.float64]
    fooled: NDArray[np.float64]
    flags: Flags = field(default_factory=dict)

    def at(self, eps: Radius) -> Accuracy:
        """Fraction of the samples for which no perturbation up to `eps` was found."""
        return exact_accuracy(int(np.count_nonzero(self.fooled > float(eps))), len(self.ids))

    @property
    def points(self) -> list[tuple[Radius, Accuracy]]:
        """The curve: clean accuracy at 0, then the grid."""
        return [(eps, self.at(eps)) for eps in (0, *self.grid)]

    @property
    def area(self) -> float:
        """Mean robust accuracy over all eps in [0, largest eps], by the trapezoidal rule."""
        slices = ((wide - eps) * (high.value + low.value) / 2 for (eps, high), (wide, low) in pairwise(self.points))
        return float(sum(slices) / self.grid[-1])

    def content(self) -> dict[str, Any]:
        """Everything as plain values; null for an infinite radius."""
        points = [
            {"eps": radius_text(eps), "eps_value": float(eps), "robust": a.correct, "total": a.total}
            | {"accuracy": a.value, "low": a.low, "high": a.high}
            for eps, a in self.points
        ]
        radii = {"survived": self.robust, "broken": self.fooled}  # names of the file format
        return {
            "norm": self.norm,
            "search": dict(self.search),
            "confidence": 0.95,
            "points": points,
            "area": self.area,
            "flags": dict(self.flags),
            "ids": self.ids.tolist(),
            **{name: [r if math.isfinite(r) else None for r in values.tolist()] for name, values in radii.items()},
        }


def check_grid(grid: Sequence[Radius]) -> tuple[Radius, ...]:
    """Check that the grid is not empty and increases from above 0.

    Raises:
        ValueError: They do not.
    """
    if not grid or not all(small < large for small, large in pairwise((0, *grid))):
        shown = ",".join(radius_text(eps) for eps in grid) or "none"
        raise ValueError(f"The grid of eps must increase from above 0, got {shown}. Pass e.g. --grid 2/255,4/255.")
    return tuple(grid)


def fixed_eps(
    model: nn.Module,
    samples: Samples,
    attack: AttackAt,
    grid: Sequence[Radius],
    *,
    batch_size: int = 256,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress = lambda _: None,
) -> SecurityCurve:
    """Attack the remaining robust samples at each eps, in increasing order.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits.
        samples: The samples to attack, at least one.
        attack: Makes the attack for one eps.
        grid: The eps of the curve, positive and increasing.
        batch_size: Samples attacked at once.
        seed: Seed of the attacks.
        folder: See `attacked`.
        progress: Called with a line for each step.

    Raises:
        ValueError: No sample, or a grid that is empty or does not increase from above 0.
    """
    grid = check_grid(grid)
    robust_radii, fooled_radii = np.zeros(len(samples)), np.zeros(len(samples))
    robust, flags = np.arange(len(samples)), dict[str, str]()
    for smaller, eps in pairwise((0, *grid)):
        rest = Samples(samples.ids[robust], samples.fetch)
        found = attacked(model, rest, attack(eps), batch_size=batch_size, seed=seed, folder=folder, progress=progress)
        flags |= found.flags
        hit, robust = robust[found.outcomes == Outcome.FOOLED], robust[found.outcomes == Outcome.ROBUST]
        robust_radii[hit], fooled_radii[hit] = smaller, eps
        if len(robust) == 0:
            break
    robust_radii[robust], fooled_radii[robust] = grid[-1], math.inf
    example = attack(grid[-1])
    search = {"method": "fixed-eps", **_without_eps(example.describe())}
    return SecurityCurve(example.norm, search, grid, samples.ids, robust_radii, fooled_radii, flags)


def attacked(
    model: nn.Module,
    samples: Samples,
    attack: Attack,
    *,
    batch_size: int,
    seed: int,
    folder: Path | None,
    progress: Progress,
) -> EvaluationResult:
    """Evaluate at one eps.

    With a `folder`, the state of the evaluation is a subfolder of it, separate for each eps and all other settings. An
    interrupted evaluation then resumes.
    """
    evaluation = Evaluation(model, attack, samples, seed, batch_size)
    state = None if folder is None else ResultFiles.of(folder, "curve", attack).state(evaluation.identity)

    def report(line: str) -> None:
        progress(f"eps {radius_text(attack.eps)}: {line}")

    return evaluation.run(state, progress=report)


def minimum_norm(
    model: nn.Module,
    samples: Samples,
    attack: FAB | MinimalAttack,
    grid: Sequence[Radius],
    *,
    batch_size: int = 256,
    progress: Progress = lambda _: None,
) -> SecurityCurve:
    """Take the size of the smallest perturbation that a minimum-norm attack finds.

    The arguments and errors are those of `fixed_eps`. An interrupted search starts over.
    """
    grid = check_grid(grid)
    if not len(samples):
        raise ValueError("A security curve must have at least one sample, got none. Pass at least one.")
    found = probe(model, *samples.fetch(samples.ids[:PROBES]))
    warn_of(found.flags)
    radii, model = [], found.model
    for first in range(0, len(samples), batch_size):
        progress(f"minimum norm, sample {first + 1} of {len(samples)}")
        x, y = samples.checked(samples.ids[first : first + batch_size], found.classes)
        with frozen(model):
            with torch.enable_grad():
                x_adv = attack.minimum(model, x, y)[0].detach()
            with torch.no_grad():
                fooled = misclassified(model(x_adv), y)
        distance = geometry_of(attack.norm).size(x_adv - x).double()
        radii.append(torch.where(fooled, distance, torch.inf).cpu().numpy())
    radius = np.concatenate(radii)
    search = {"method": "minimum-norm", **_without_eps(attack.describe())}
    return SecurityCurve(attack.norm, search, grid, samples.ids, radius, radius, found.flags)


def _without_eps(settings: Any) -> Any:
    """The settings of an attack, and of those inside it, that hold for the whole grid."""
    if isinstance(settings, list):
        return [_without_eps(part) for part in settings]
    if isinstance(settings, dict):
        return {
            name: _without_eps(value) for name, value in settings.items() if name not in ("eps", "eps_value", "norm")
        }
    return settings
