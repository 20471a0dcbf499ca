"""Accuracy intervals that hold while samples are still being judged, and rules for stopping early."""

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
"""Numbers of correct samples whose log-ratio is this near to the limit stay in the interval."""


@dataclass(frozen=True)
class Interval:
    """A range of accuracies.

    Attributes:
        low: Lower end, in [0, 1].
        high: Upper end, in [0, 1].
    """

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the distance of the ends."""
        return (self.high - self.low) / 2

    def __contains__(self, accuracy: float) -> bool:
        return self.low <= accuracy <= self.high

    def __str__(self) -> str:
        """As in `[58.4, 64.5] %`."""
        return f"[{100 * self.low:.1f}, {100 * self.high:.1f}] %"


def anytime_interval(correct: int, judged: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval for the accuracy on a finite set of samples, of which some were judged in random order.

    The prior-posterior-ratio sequence of Waudby-Smith and Ramdas (2020, section 2) with the uniform prior on the number
    K of correct samples among all. Before the first sample the ratio `prior(K) / posterior(K)` is 1, and for the true K
    it is a martingale, so that by Ville's inequality it ever reaches `1 / (1 - confidence)` with a probability of at
    most `1 - confidence`. The interval holds all K where it is smaller. Hence the intervals at all times together cover
    the truth with the probability `confidence`: one may look after each sample and stop for any reason. After the last
    sample the interval is a point.

    Args:
        correct: Samples judged correct so far.
        judged: Samples judged so far; the first ones of a random order, drawn before anything was judged.
        total: Samples in the set.
        confidence: Probability that no interval ever misses the accuracy on all `total` samples.

    Raises:
        ValueError: Counts that contradict each other, or a confidence outside (0, 1).
    """
    import numpy as np

    if not 0 <= correct <= judged <= total or total < 1:
        raise ValueError(
            "An interval needs 0 <= correct <= judged <= total and total >= 1, but got "
            f"{correct} correct of {judged} judged of {total}."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, but is {confidence}. Usual is {CONFIDENCE}.")
    # Other numbers of correct samples contradict what was seen.
    possible = np.arange(correct, total - (judged - correct) + 1)
    limit = -np.log1p(-confidence) + _ROUNDING
    kept = possible[_log_ratio(possible, correct, judged, total) < limit]
    return Interval(float(kept[0] / total), float(kept[-1] / total))  # the ratio is convex in K: no gaps


def _log_ratio(successes: "NDArray[np.int64]", correct: int, judged: int, total: int) -> "NDArray[np.float64]":
    """Logarithm of prior over posterior, for possible numbers of correct samples among all.

    It is the probability of the counts under the prior, which is 1 / (judged + 1) for each count of correct samples,
    over their hypergeometric probability.
    """
    import numpy as np

    hypergeometric = (
        _log_binomial(successes, correct)
        + _log_binomial(total - successes, judged - correct)
        - _log_binomial(np.asarray(total), judged)
    )
    ratio: NDArray[np.float64] = -np.log(judged + 1.0) - hypergeometric
    return ratio


def _log_binomial(n: "NDArray[np.int64]", k: int) -> "NDArray[np.float64]":
    from scipy.special import gammaln

    result: NDArray[np.float64] = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)
    return result


class ConfidenceSequence:
    """The intersection of the `anytime_interval`s seen so far, which covers the truth just as often.

    Should the intersection become empty, at least one interval has missed; the newest one is then the start of a new
    intersection.

    Args:
        total: Samples in the set.
        confidence: Probability that no interval ever misses the accuracy on all `total` samples.
    """

    def __init__(self, total: int, confidence: float = CONFIDENCE) -> None:
        self.total = total
        self.confidence = confidence
        self.interval = anytime_interval(0, 0, total, confidence)

    def update(self, correct: int, judged: int) -> Interval:
        """Take the counts so far into account, and return the intersection.

        Args:
            correct: Samples judged correct so far.
            judged: Samples judged so far.
        """
        new = anytime_interval(correct, judged, self.total, self.confidence)
        low, high = max(self.interval.low, new.low), min(self.interval.high, new.high)
        self.interval = Interval(low, high) if low <= high else new
        return self.interval


class StopRule(ABC):
    """Decides after each block of samples whether enough were judged.

    The rules look at `anytime_interval` and not at its intersection over time, so that the answer depends on the counts
    alone, and not on when the rule was asked before. The interval stays valid under every rule; the samples must come
    in random order.
    """

    @property
    @abstractmethod
    def reason(self) -> str:
        """Why the evaluation ended, when this rule has ended it."""

    @abstractmethod
    def __call__(self, robust: int, judged: int, total: int) -> bool:
        """Whether to stop.

        Args:
            robust: Samples that withstood all attacks so far.
            judged: Samples judged so far.
            total: Samples in the set.
        """

    def reset(self) -> None:  # noqa: B027  # most rules have nothing to forget
        """Prepare for another evaluation."""


class HalfWidth(StopRule):
    """Stops when the robust accuracy is known precisely enough.

    Args:
        half_width: Half of the length of the 95 % interval; 0.01 is one percentage point to either side.

    Raises:
        ValueError: A width outside (0, 0.5).
    """

    def __init__(self, half_width: float = 0.01) -> None:
        if not 0 < half_width < 0.5:
            raise ValueError(
                f"half_width must lie between 0 and 0.5, but is {half_width}. Write 0.01 for one percentage point."
            )
        self.half_width = half_width

    @property
    def reason(self) -> str:
        """Why the evaluation ended, when this rule has ended it."""
        return f"robust accuracy known to ±{100 * self.half_width:g} points"

    def __call__(self, robust: int, judged: int, total: int) -> bool:
        """Whether to stop."""
        return anytime_interval(robust, judged, total).half_width <= self.half_width


class Decide(StopRule):
    """Stops when it is clear whether the robust accuracy is above or below a value; wrong in at most 5 % of all cases.

    Args:
        above: The value, in [0, 1].

    Raises:
        ValueError: A value outside [0, 1].
    """

    def __init__(self, above: float) -> None:
        if not 0 <= above <= 1:
            raise ValueError(f"above must be an accuracy between 0 and 1, but is {above}. Write 0.55 for 55 %.")
        self.above = above

    @property
    def reason(self) -> str:
        """Why the evaluation ended, when this rule has ended it."""
        return f"robust accuracy decided to be above or below {100 * self.above:g} %"

    def __call__(self, robust: int, judged: int, total: int) -> bool:
        """Whether to stop."""
        return self.above not in anytime_interval(robust, judged, total)


class TimeLimit(StopRule):
    """Stops when the time is up; what was judged until then has a valid interval, since it holds at every time.

    The clock starts at the first question, which is asked after the first block of samples, and takes no notice of
    changes of the system's time.

    Args:
        minutes: How long, positive.

    Raises:
        ValueError: A time that is not positive.
    """

    def __init__(self, minutes: float) -> None:
        if not minutes > 0:
            raise ValueError(f"minutes must be positive, but is {minutes}. Give the time that you have.")
        self.minutes = minutes
        self._started: float | None = None

    @property
    def reason(self) -> str:
        """Why the evaluation ended, when this rule has ended it."""
        return f"{self.minutes:g} minutes are over"

    def __call__(self, robust: int, judged: int, total: int) -> bool:
        """Whether to stop."""
        del robust, judged, total
        if self._started is None:
            self._started = time.monotonic()
        return time.monotonic() - self._started >= 60 * self.minutes

    def reset(self) -> None:
        """Stop the clock; the next question starts it again."""
        self._started = None


class AnyOf(StopRule):
    """Stops when any of several rules says so.

    Args:
        rules: At least one.

    Raises:
        ValueError: No rule.
    """

    def __init__(self, rules: list[StopRule]) -> None:
        if not rules:
            raise ValueError("AnyOf got no rule. List at least one.")
        self.rules = rules

    @property
    def reason(self) -> str:
        """Why the evaluation ended, when this rule has ended it."""
        return ", or ".join(rule.reason for rule in self.rules)

    def __call__(self, robust: int, judged: int, total: int) -> bool:
        """Whether to stop."""
        answers = [
            rule(robust, judged, total) for rule in self.rules
        ]  # of all: each clock starts at the first question
        return any(answers)

    def reset(self) -> None:
        """Prepare all rules for another evaluation."""
        for rule in self.rules:
            rule.reset()
