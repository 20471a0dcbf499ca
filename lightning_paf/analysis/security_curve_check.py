"""Check of a security curve, which must not rise, and its figure."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lightning_paf.analysis.base import Progress
from lightning_paf.analysis.security_curve import AttackAt, SecurityCurve, attacked
from lightning_paf.attacks import radius_text
from lightning_paf.evaluation import Outcome, Samples
from lightning_paf.types import Radius
from lightning_paf.utils.figures import BLUE, REFERENCE, VERMILION, draw_accuracy, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CLEARLY = 1.1
"""Ratio above which two sizes differ, since no attack finds the exact minimum."""


@dataclass(frozen=True)
class Recheck:
    """Comparison of the curve with direct attacks on all samples at a few eps.

    Attributes:
        eps: The eps, increasing.
        robust: Number of robust samples at each.
        total: Number of samples.
        reversed: Samples that are robust at one eps, in the check or in the curve, although a perturbation smaller by
            a tenth or more fools the model.
        robust_at_one: Samples that are robust under an l-infinity attack of eps 1, which allows every image; None for
            another norm.
        tolerance: Largest fraction of either kind without an alarm, because attacks are random.
    """

    eps: tuple[Radius, ...]
    robust: tuple[int, ...]
    total: int
    reversed: int
    robust_at_one: int | None
    tolerance: float

    @property
    def alarms(self) -> list[str]:
        """One sentence for every sign of a failing attack."""
        found = [
            f"Robust accuracy rises with eps: {more} of {self.total} samples withstand {radius_text(small)}, but "
            f"{less} withstand {radius_text(large)}."
            for (small, more), (large, less) in pairwise(zip(self.eps, self.robust, strict=True))
            if less > more
        ]
        for count, text in (
            (self.reversed, "the attack at an eps although a clearly smaller perturbation fools the model."),
            (self.robust_at_one or 0, "eps 1, where any image is allowed and none should be left."),
        ):
            if count > self.tolerance * self.total:
                found.append(f"{count} of {self.total} samples withstand {text}")
        return found

    def content(self) -> dict[str, Any]:
        """Everything as plain values."""
        points = [
            {"eps": radius_text(eps), "eps_value": float(eps), "robust": robust}
            for eps, robust in zip(self.eps, self.robust, strict=True)
        ]
        names = ("reversed", "tolerance", "robust_at_one", "alarms")
        return {"points": points, **{name: getattr(self, name) for name in names}}


def recheck(
    model: nn.Module,
    curve: SecurityCurve,
    attack: AttackAt,
    samples: Samples,
    *,
    batch_size: int = 256,
    seed: int = 1,
    tolerance: float = 0.02,
    folder: Path | None = None,
    progress: Progress = lambda _: None,
) -> Recheck:
    """Attack all samples of a curve at its smallest, middle and largest eps, and at 1.

    An attack that fails at an eps where a smaller perturbation is known to exist is too weak, or the model masks its
    gradients. The curve is then too high. `seed` must differ from that of the curve; for `tolerance` see `Recheck`, for
    the other arguments `fixed_eps`.
    """

    def robust_at(eps: Radius) -> NDArray[np.bool_]:
        at = attack(eps)
        found = attacked(model, samples, at, batch_size=batch_size, seed=seed, folder=folder, progress=progress)
        return np.equal(found.outcomes, Outcome.ROBUST)

    last = len(curve.grid) - 1
    eps = tuple(curve.grid[index] for index in sorted({0, (last + 1) // 2, last}))
    robust = np.stack([robust_at(radius) for radius in eps])
    sizes = np.array([float(radius) for radius in eps])[:, None]
    fooled = np.minimum(curve.fooled, np.where(robust, math.inf, sizes).min(0))
    robust_radii = np.maximum(curve.robust, np.where(robust, sizes, 0.0).max(0))
    at_one = int(robust_at(1).sum()) if curve.norm == "linf" else None
    counts = tuple(robust.sum(1).tolist())
    return Recheck(eps, counts, len(samples), int((_CLEARLY * fooled < robust_radii).sum()), at_one, tolerance)


def draw_curve(
    curve: SecurityCurve, headline: str, check: Recheck | None = None, trained: Radius | None = None
) -> "Figure":
    """Draw robust accuracy over eps with 95 % intervals, checks and training eps."""
    unit = 255 if curve.norm == "linf" else 1
    eps = [unit * float(radius) for radius, _ in curve.points]
    accuracies = [accuracy for _, accuracy in curve.points]
    clean = 100 * accuracies[0].value
    with open_figure(7.2, 4.8, headline) as figure:
        axes = figure.add_subplot()
        name = f"eps ({curve.norm}{', in 1/255' if unit == 255 else ''})"
        draw_accuracy(axes, eps, accuracies, "robust accuracy", name, marker="o", markersize=5)
        axes.plot(eps[:1], [clean], "D", color=BLUE, markersize=8, label=f"clean accuracy, {clean:.1f} %")
        if trained is not None:
            axes.axvline(unit * float(trained), **REFERENCE, label=f"eps of the training, {radius_text(trained)}")
        if check is not None:
            direct = [100 * robust / check.total for robust in check.robust]
            at = [unit * float(radius) for radius in check.eps]
            axes.plot(at, direct, "s", color=VERMILION, fillstyle="none", markersize=10, label="direct attack (check)")
            if check.alarms:
                axes.set_title("ALARM: this attack is unreliable here; the curve may be too high", color=VERMILION)
        axes.set_xlim(-0.02 * eps[-1], 1.02 * eps[-1])
        axes.legend()
    return figure
