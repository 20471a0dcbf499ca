"""Intervals for accuracies, and tests of their differences."""

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
    from scipy.special import betaincinv

    tail, wrong = (1 - confidence) / 2, total - correct
    low = float(betaincinv(correct, wrong + 1, tail)) if correct else 0.0
    high = float(betaincinv(correct + 1, wrong, 1 - tail)) if wrong else 1.0
    return Accuracy(correct, total, low, high)


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


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar (1947) test that two models are equally often right.

    Under this hypothesis each disputed sample is a fair coin: the test is a binomial one. Samples that both models have
    right, or both wrong, say nothing about it.

    Args:
        only_first: Samples that only the first model has right.
        only_second: Samples that only the second model has right.

    Returns:
        The p-value; 1 without disputed samples.

    Raises:
        ValueError: A negative count.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"Disputed samples are counts, but got {only_first} and {only_second}. Give none below 0.")
    if only_first + only_second == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second).pvalue)


def needed_samples(
    only_first: int, only_second: int, total: int, significance: float = 0.05, power: float = 0.8
) -> int | None:
    """How many more samples McNemar's test would need to tell two models apart, at the rates seen so far.

    With the share d of disputed samples and the difference s of the two accuracies, Connor (1987) needs
    `n = ((z_a sqrt(d) + z_b sqrt(d - s^2)) / s)^2` samples, where z_a and z_b are the quantiles of the normal
    distribution at `1 - significance / 2` and at `power`. The rates are estimates themselves: an order of magnitude.

    Args:
        only_first: Samples that only the first model has right.
        only_second: Samples that only the second model has right.
        total: Samples that both models were judged on.
        significance: Of the two-sided test.
        power: Probability that the test then decides.

    Returns:
        0 where the test decides already; None where the models are right equally often, so that no number is enough.

    Raises:
        ValueError: More disputed samples than samples.
    """
    difference = paired_difference(only_first, only_second, total).value  # refuses impossible counts
    if mcnemar(only_first, only_second) <= significance:
        return 0
    if difference == 0:
        return None
    from scipy.stats import norm

    disputed = (only_first + only_second) / total
    spread = float(norm.ppf(1 - significance / 2)) * math.sqrt(disputed)
    spread += float(norm.ppf(power)) * math.sqrt(disputed - difference**2)
    return max(1, math.ceil((spread / difference) ** 2) - total)
