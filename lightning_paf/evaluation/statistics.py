"""Intervals of accuracies, and tests of their differences."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """A count of correct samples with its exact 95 % interval.

    Attributes:
        correct: Correctly classified samples.
        total: Evaluated samples.
        low: Lower end of the interval, in [0, 1].
        high: Upper end of the interval, in [0, 1].
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
        """Format as `61.5 % [58.4, 64.5]`."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def exact_accuracy(correct: int, total: int, confidence: float = 0.95) -> Accuracy:
    """Return an accuracy with the exact interval of Clopper and Pearson (1934).

    Args:
        correct: Correctly classified samples.
        total: Evaluated samples, at least 1.
        confidence: Coverage of the interval.

    Raises:
        ValueError: No sample, or more correct samples than samples.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"Counts must satisfy 0 <= correct <= total and total >= 1, got {correct} of {total}.")
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
        only_first: Samples that only the first model classifies correctly.
        only_second: Samples that only the second model classifies correctly.
    """

    value: float
    low: float
    high: float
    only_first: int
    only_second: int

    def __str__(self) -> str:
        """Format as `+1.2 points [-0.8, +3.2]`."""
        return f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def paired_difference(only_first: int, only_second: int, total: int, confidence: float = 0.95) -> Difference:
    """Return a paired difference with the interval of Agresti and Min (2005).

    Half a sample is added to each cell of the two-by-two table, for valid coverage when few or no samples differ. The
    interval is about other test samples, not about other training seeds.

    Args:
        only_first: Samples that only the first model classifies correctly.
        only_second: Samples that only the second model classifies correctly.
        total: Samples that both models were evaluated on.
        confidence: Coverage of the interval.

    Raises:
        ValueError: More differing samples than samples.
    """
    if only_first < 0 or only_second < 0 or total < 1 or only_first + only_second > total:
        raise ValueError(f"Differing samples must be at most all samples, got {only_first} + {only_second} of {total}.")
    from scipy.stats import norm

    surplus, differing, adjusted = only_first - only_second, only_first + only_second + 1, total + 2
    half_width = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(differing - surplus**2 / adjusted) / adjusted
    centre = surplus / adjusted
    return Difference(surplus / total, centre - half_width, centre + half_width, only_first, only_second)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of the exact two-sided McNemar (1947) test.

    The counts are those of `paired_difference`. Without differing samples the p-value is 1.

    Raises:
        ValueError: A negative count.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"Counts must not be negative, got {only_first} and {only_second}.")
    if only_first + only_second == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second).pvalue)


def needed_samples(
    only_first: int, only_second: int, total: int, significance: float = 0.05, power: float = 0.8
) -> int | None:
    """Estimate the number of additional samples for a significant McNemar test.

    With the fraction d of differing samples and the difference s of the two accuracies, Connor (1987) needs
    `n = ((z_a sqrt(d) + z_b sqrt(d - s^2)) / s)^2` samples, where z_a and z_b are the quantiles of the normal
    distribution at `1 - significance / 2` and at `power`. The rates are estimates themselves: an order of magnitude.

    Args:
        only_first: As in `paired_difference`, like the next two.
        only_second: See there.
        total: See there.
        significance: Level of the two-sided test.
        power: Probability that the test is then significant.

    Returns:
        0 where the test is already significant; None where the models are equally accurate.

    Raises:
        ValueError: More differing samples than samples.
    """
    difference = paired_difference(only_first, only_second, total).value  # checks the counts
    if mcnemar(only_first, only_second) <= significance:
        return 0
    if difference == 0:
        return None
    from scipy.stats import norm

    differing = (only_first + only_second) / total
    spread = float(norm.ppf(1 - significance / 2)) * math.sqrt(differing)
    spread += float(norm.ppf(power)) * math.sqrt(differing - difference**2)
    return max(1, math.ceil((spread / difference) ** 2) - total)


@dataclass(frozen=True)
class Mean:
    """Mean of one value per sample, with Student's 95 % interval.

    Attributes:
        value: Mean.
        low: Lower end; NaN for a single sample.
        high: Upper end; NaN for a single sample.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Format as `28.41 [27.90, 28.92]`."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """Return the mean of independent samples with its interval.

    Args:
        values: One value per sample, such as the PSNR of an image; at least one.
        confidence: Coverage of the interval for normally distributed values.

    Raises:
        ValueError: No value.
    """
    if not values:
        raise ValueError("A mean must have at least one value, got none.")
    from scipy.stats import t as student

    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Mean(mean, math.nan, math.nan)
    half_width = float(student.ppf((1 + confidence) / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return Mean(mean, mean - half_width, mean + half_width)
