"""Whether one may believe a security curve: an attack must not fail where a weaker one succeeds."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lightning_paf.analysis.security_curve import AttackAt, Progress, SecurityCurve, broken_by, right, silent
from lightning_paf.attacks import radius_text
from lightning_paf.evaluation.samples import Samples
from lightning_paf.types import Radius

_CLEARLY = 1.1
"""By how much a perturbation must be smaller before it counts as smaller: no attack finds the smallest one exactly."""


@dataclass(frozen=True)
class Recheck:
    """The fixed-eps attack on all samples at a few eps, which must agree with itself and with the curve.

    Attributes:
        eps: Where.
        robust: How many samples were robust at each.
        total: How many samples there are.
        reversed: Samples that withstand the attack at one eps, or are taken for robust up to it by the curve, though a
            perturbation that is smaller by a tenth or more fools the model.
        robust_at_one: Samples that withstand an l-infinity attack of eps 1, which may make any image of any other;
            None for another norm.
        tolerance: Share of the samples that may do so without an alarm, because attacks are random.
    """

    eps: tuple[Radius, ...]
    robust: tuple[int, ...]
    total: int
    reversed: int
    robust_at_one: int | None
    tolerance: float

    @property
    def alarms(self) -> list[str]:
        """One sentence with the evidence for every sign that the attack fails where it should not."""
        found = []
        for (small, more), (large, less) in pairwise(self._points):
            if less > more:
                found.append(
                    f"Robust accuracy rises with eps: {more} of {self.total} samples withstand {radius_text(small)}, "
                    f"but {less} withstand {radius_text(large)}."
                )
        if self.reversed > self.tolerance * self.total:
            found.append(
                f"{self.reversed} of {self.total} samples withstand the attack at an eps although a clearly smaller "
                "perturbation fools the model."
            )
        if self.robust_at_one is not None and self.robust_at_one > self.tolerance * self.total:
            found.append(
                f"{self.robust_at_one} of {self.total} samples withstand eps 1, where any image is allowed and none "
                "should be left."
            )
        return found

    @property
    def _points(self) -> list[tuple[Radius, int]]:
        return list(zip(self.eps, self.robust, strict=True))

    def content(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "points": [{"eps": radius_text(eps), "eps_value": float(eps), "robust": n} for eps, n in self._points],
            "reversed": self.reversed,
            "tolerance": self.tolerance,
            "robust_at_one": self.robust_at_one,
            "alarms": self.alarms,
        }


def recheck(
    model: nn.Module,
    curve: SecurityCurve,
    attack: AttackAt,
    samples: Samples,
    batch_size: int = 256,
    seed: int = 1,
    tolerance: float = 0.02,
    progress: Progress = silent,
) -> Recheck:
    """Attack the samples of a curve directly at its smallest, middle and largest eps, and at 1.

    An attack that fails at an eps where a smaller perturbation is known to exist has not found what is there: it is too
    weak, or the model masks its gradients. The curve is then too high.

    Args:
        model: As for the curve.
        curve: What to check.
        attack: Makes the attack for one eps.
        samples: Those of the curve.
        batch_size: Samples attacked at once.
        seed: Of the attacks; another one than that of the curve.
        tolerance: See `Recheck`.
        progress: Is told how far the check is.
    """
    correct = right(model, samples, batch_size)
    places = np.flatnonzero(correct)

    def withstands(eps: Radius) -> NDArray[np.bool_]:
        progress(f"check at eps {radius_text(eps)}")
        result = correct.copy()
        result[places] = ~broken_by(model, attack(eps), samples, places, batch_size, seed)
        return result

    last = len(curve.grid) - 1
    eps = tuple(curve.grid[index] for index in sorted({0, (last + 1) // 2, last}))
    robust = np.stack([withstands(radius) for radius in eps])
    sizes = np.array([float(radius) for radius in eps])[:, None]
    broken = np.minimum(curve.radii.broken, np.where(robust, math.inf, sizes).min(0))
    survived = np.maximum(curve.radii.survived, np.where(robust, sizes, 0.0).max(0))
    at_one = int(withstands(1).sum()) if curve.norm == "linf" else None
    counts = tuple(int(count) for count in robust.sum(1))
    return Recheck(eps, counts, len(samples), int((_CLEARLY * broken < survived).sum()), at_one, tolerance)
