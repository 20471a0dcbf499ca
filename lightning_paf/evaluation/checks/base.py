"""What every check of the doctor has in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lightning_paf.evaluation.checks.context import Patient
from lightning_paf.evaluation.statistics import Difference, exact_accuracy, paired_difference

LARGEST_GAIN = 0.05
"""What a stronger attack may gain on a healthy model, as a share of all samples.

Between PGD on cross-entropy and AutoAttack, well-trained networks lose up to about 5 points (Croce & Hein 2020,
tables 2 and 3); masked gradients cost tens of points."""

LARGEST_SHARE = 0.01
"""What may go wrong by chance where a healthy model has nothing at all: no sample without a gradient, none that stands
at the largest eps."""

VISIBLE = 1e-3
"""Differences of logits count from this share of their spread: a hundred times what rounding makes of single precision
where kernels are not deterministic."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The answer of one check.

    Attributes:
        check: Name of the check, such as `zero-gradients`.
        healthy: Whether nothing is wrong.
        evidence: What was measured, in one sentence.
        why: What goes wrong where this is not healthy.
        remedy: What to do then.
        values: The measured numbers, ready for JSON.
        final: Whether no further check would mean anything.
    """

    check: str
    healthy: bool
    evidence: str
    why: str
    remedy: str
    values: dict[str, Any]
    final: bool = False


class Symptom(ABC):
    """One check: measures a patient and judges the measurement."""

    name: ClassVar[str]
    why: ClassVar[str]
    remedy: ClassVar[str]
    decisive: ClassVar[bool] = False
    """Whether the checks that follow mean nothing where this one is not healthy."""

    @abstractmethod
    def examine(self, patient: Patient) -> Finding:
        """Measure and judge. The caller has seeded torch and restores its generators."""

    def finding(self, healthy: bool, evidence: str, **values: Any) -> Finding:
        """An answer of this check."""
        return Finding(
            check=self.name,
            healthy=healthy,
            evidence=evidence,
            why=self.why,
            remedy=self.remedy,
            values=values,
            final=self.decisive and not healthy,
        )


def gain(before: Tensor, after: Tensor) -> Difference:
    """What attacking further cost, in accuracy.

    Args:
        before: Which samples stood (n,).
        after: Which of them still stand (n,).
    """
    return paired_difference(int((before & ~after).sum()), int((after & ~before).sum()), len(before))


def is_large(difference: Difference) -> bool:
    """Whether a gain is larger than a healthy model explains, and than the choice of the samples explains."""
    return difference.low > LARGEST_GAIN


def is_frequent(count: int, total: int) -> bool:
    """Whether more than `LARGEST_SHARE` of all samples are concerned, beyond what the choice of these explains."""
    return total > 0 and exact_accuracy(count, total).low > LARGEST_SHARE


def smallest_gain(total: int) -> float:
    """The smallest gain, as a share of the samples, that `is_large` can see among `total` samples."""
    return next((k / total for k in range(total + 1) if is_large(paired_difference(k, 0, total))), 1.0)


def share(part: Tensor) -> float:
    """Share of the true entries."""
    return float(part.double().mean())


def percent(value: float) -> str:
    """As in `41.0 %`."""
    return f"{100 * value:.1f} %"
