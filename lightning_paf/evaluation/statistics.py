"""Intervals for accuracies."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """A count of correct samples with its exact interval.

    Attributes:
        correct: Samples classified correctly.
        total: Samples judged.
        low: Lower end of the 95 % interval, in [0, 1].
        high: Upper end of the 95 % interval, in [0, 1].
    """

    correct: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Accuracy in [0, 1]."""
        return self.correct / self.total

    def __str__(self) -> str:
        """As in `61.5 % [58.4, 64.5]`."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def exact_accuracy(correct: int, total: int, confidence: float = 0.95) -> Accuracy:
    """Accuracy with the exact binomial interval of Clopper and Pearson (1934).

    Args:
        correct: Samples classified correctly.
        total: Samples judged, at least 1.
        confidence: Coverage of the interval.

    Raises:
        ValueError: No sample, or more correct samples than samples.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"An accuracy needs 0 <= correct <= total and total >= 1, but got {correct} of {total}.")
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(confidence, method="exact")
    return Accuracy(correct, total, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Difference:
    """Difference of two accuracies on the same samples, with a 95 % interval.

    Attributes:
        value: First accuracy minus second, in [-1, 1].
        low: Lower end.
        high: Upper end.
        only_first: Samples that only the first model has right.
        only_second: Samples that only the second model has right.
    """

    value: float
    low: float
    high: float
    only_first: int
    only_second: int

    def __str__(self) -> str:
        """As in `+1.2 points [-0.8, +3.2]`."""
        return f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def paired_difference(only_first: int, only_second: int, total: int, confidence: float = 0.95) -> Difference:
    """Difference of paired proportions with the adjusted Wald interval of Agresti and Min (2005).

    Half a sample is added to each cell of the two-by-two table, which keeps the interval honest when few or no samples
    are disputed. It says what other test samples would give, and not what another training seed would.

    Args:
        only_first: Samples that only the first model has right.
        only_second: Samples that only the second model has right.
        total: Samples that both models were judged on.
        confidence: Coverage of the interval.

    Raises:
        ValueError: More disputed samples than samples.
    """
    if only_first < 0 or only_second < 0 or total < 1 or only_first + only_second > total:
        raise ValueError(f"{only_first} + {only_second} disputed samples do not fit into {total} samples.")
    from scipy.stats import norm

    surplus, disputed, adjusted = only_first - only_second, only_first + only_second + 1, total + 2
    half_width = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(disputed - surplus**2 / adjusted) / adjusted
    centre = surplus / adjusted
    return Difference(surplus / total, centre - half_width, centre + half_width, only_first, only_second)
