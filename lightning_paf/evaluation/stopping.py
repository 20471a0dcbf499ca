"""Anytime-valid intervals of accuracy, and rules for stopping early."""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Coverage of the intervals of this package."""

_ROUNDING = 1e-9
"""Tolerance of the log-ratio at the ends of an interval."""


@dataclass(frozen=True)
class Interval:
    """A range of accuracies in [0, 1]."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the distance of the ends."""
        return (self.high - self.low) / 2

    def __contains__(self, accuracy: float) -> bool:
        return self.low <= accuracy <= self.high

    def __str__(self) -> str:
        """Format as `[58.4, 64.5] %`."""
        return f"[{100 * self.low:.1f}, {100 * self.high:.1f}] %"


def anytime_interval(correct: int, evaluated: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the anytime-valid interval for the accuracy on a finite set.

    The prior-posterior-ratio sequence of Waudby-Smith and Ramdas (2020, section 2) with the uniform prior on the number
    K of correct samples among all. Before the first sample the ratio `prior(K) / posterior(K)` is 1, and for the true K
    it is a martingale, so that by Ville's inequality it ever reaches `1 / (1 - confidence)` with a probability of at
    most `1 - confidence`. The interval is the range of all K with a smaller ratio. Hence all intervals together cover
    the truth with the probability `confidence`: a stop at any time and for any reason is valid. After the last sample
    the interval is a point.

    Args:
        correct: Correct samples so far.
        evaluated: Evaluated samples so far; the first ones of a random order.
        total: Samples in the set.
        confidence: Probability that no interval ever misses the accuracy on all `total` samples.

    Raises:
        ValueError: Inconsistent counts, or a confidence outside (0, 1).
    """
    import numpy as np

    if not 0 <= correct <= evaluated <= total or total < 1:
        raise ValueError(
            "Counts must satisfy 0 <= correct <= evaluated <= total and total >= 1, got "
            f"{correct} correct of {evaluated} evaluated of {total}."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}. The default is {CONFIDENCE}.")
    possible = np.arange(correct, total - (evaluated - correct) + 1)  # K that agree with the counts
    limit = -np.log1p(-confidence) + _ROUNDING
    kept = possible[_log_ratio(possible, correct, evaluated, total) < limit]
    return Interval(float(kept[0] / total), float(kept[-1] / total))  # the ratio is convex in K: no gaps


def _log_ratio(successes: "NDArray[np.int64]", correct: int, evaluated: int, total: int) -> "NDArray[np.float64]":
    """Return log(prior / posterior) for numbers of correct samples among all.

    The ratio is the probability of the counts under the prior, 1 / (evaluated + 1), over the hypergeometric one.
    """
    import numpy as np

    hypergeometric = (
        _log_binomial(successes, correct)
        + _log_binomial(total - successes, evaluated - correct)
        - _log_binomial(np.asarray(total), evaluated)
    )
    ratio: NDArray[np.float64] = -np.log(evaluated + 1.0) - hypergeometric
    return ratio


def _log_binomial(n: "NDArray[np.int64]", k: int) -> "NDArray[np.float64]":
    from scipy.special import gammaln

    result: NDArray[np.float64] = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)
    return result


class StopRule(ABC):
    """Decides after each block whether to stop; the samples must be in random order.

    `anytime_interval` is valid under every rule.
    """

    @property
    @abstractmethod
    def reason(self) -> str:
        """Reason for the stop, for the log and the result."""

    @abstractmethod
    def __call__(self, robust: int, evaluated: int, total: int) -> bool:
        """Return whether to stop.

        Args:
            robust: Robust samples so far.
            evaluated: Evaluated samples so far.
            total: Samples in the set.
        """

    def reset(self) -> None:  # noqa: B027  # most rules have no state
        """Prepare for another evaluation."""


class HalfWidth(StopRule):
    """Stops at a given precision of the robust accuracy.

    Args:
        half_width: Half of the length of the 95 % interval; 0.01 is one percentage point to either side.

    Raises:
        ValueError: A width outside (0, 0.5).
    """

    def __init__(self, half_width: float = 0.01) -> None:
        if not 0 < half_width < 0.5:
            raise ValueError(
                f"half_width must be between 0 and 0.5, got {half_width}. Pass 0.01 for one percentage point."
            )
        self.half_width = half_width

    @property
    def reason(self) -> str:
        """Reason for the stop, for the log and the result."""
        return f"robust accuracy known to ±{100 * self.half_width:g} points"

    def __call__(self, robust: int, evaluated: int, total: int) -> bool:
        """Return whether to stop."""
        return anytime_interval(robust, evaluated, total).half_width <= self.half_width


class TimeLimit(StopRule):
    """Stops after a given time.

    The time starts with the first call, after the first block of samples; it ignores changes of the system time.

    Args:
        minutes: Duration, positive.

    Raises:
        ValueError: A duration that is not positive.
    """

    def __init__(self, minutes: float) -> None:
        if not minutes > 0:
            raise ValueError(f"minutes must be positive, got {minutes}. Pass e.g. 30.")
        self.minutes = minutes
        self._started: float | None = None

    @property
    def reason(self) -> str:
        """Reason for the stop, for the log and the result."""
        return f"{self.minutes:g} minutes are over"

    def __call__(self, robust: int, evaluated: int, total: int) -> bool:
        """Return whether to stop."""
        if self._started is None:
            self._started = time.monotonic()
        return time.monotonic() - self._started >= 60 * self.minutes

    def reset(self) -> None:
        """Restart the time at the next call."""
        self._started = None
