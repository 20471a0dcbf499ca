"""Schedules as functions of the fraction of the training that is done.

YAML never repeats numbers of epochs or steps: the module multiplies the learning rate by `schedule(progress)` at every
optimiser step, with progress from 0 to 1. The radius of an attack and the share of real images have schedules too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

_PROBES = 100


class Schedule(ABC):
    """A factor for the learning rate, or for what else changes over a training.

    Args:
        warmup: Fraction of the training during which the factor rises linearly from `warmup_start`.
        warmup_start: Factor at the very beginning, relative to the factor after the warm-up.

    Raises:
        ValueError: A fraction outside [0, 1).
    """

    def __init__(self, warmup: float = 0.0, warmup_start: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is a fraction of the training in [0, 1), but warmup={warmup}. Pass e.g. 0.025.")
        if not 0 <= warmup_start <= 1:
            raise ValueError(f"warmup_start is a factor in [0, 1], but warmup_start={warmup_start}. Pass e.g. 0.04.")
        self.warmup = warmup
        self.warmup_start = warmup_start

    def __call__(self, progress: float) -> float:
        """Factor at `progress`, which is clipped to [0, 1]."""
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup:
            rise = progress / self.warmup
            return (self.warmup_start + (1 - self.warmup_start) * rise) * self.factor(0.0)
        return self.factor((progress - self.warmup) / (1 - self.warmup))

    def check_share(self, what: str) -> None:
        """Refuse factors outside [0, 1].

        Args:
            what: What is multiplied, for the message.

        Raises:
            ValueError: There is such a factor.
        """
        factors = [self(i / _PROBES) for i in range(_PROBES + 1)]
        if not (min(factors) >= 0 and max(factors) <= 1):
            raise ValueError(
                f"{what} is scaled by a factor in [0, 1], but {type(self).__name__} goes from {min(factors):g} to "
                f"{max(factors):g}. Give the largest value, and a schedule that scales it down."
            )

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Factor at `progress` in [0, 1] of the time after the warm-up."""


class Constant(Schedule):
    """The learning rate as given."""

    def factor(self, progress: float) -> float:
        """Always 1."""
        del progress
        return 1.0


class Cosine(Schedule):
    """Half a cosine from 1 down to `final`.

    Args:
        final: Factor at the end. Dai et al. (2021) end at 0.01 (learning rate 0.1 to 0.001).
        warmup: Fraction of the training during which the factor rises linearly from `warmup_start`.
        warmup_start: Factor at the very beginning.
    """

    def __init__(self, final: float = 0.0, warmup: float = 0.0, warmup_start: float = 0.0) -> None:
        super().__init__(warmup, warmup_start)
        self.final = final

    def factor(self, progress: float) -> float:
        """Cosine between 1 and `final`."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class Piecewise(Schedule):
    """A constant that drops at given moments.

    Args:
        drops: Fractions of the training at which the factor is multiplied by `gamma`, increasing.
        gamma: What it is multiplied by. Rice et al. (2020) and Pang et al. (2021) drop by 10.
        warmup: Fraction of the training during which the factor rises linearly from `warmup_start`.
        warmup_start: Factor at the very beginning.

    Raises:
        ValueError: Drops that are not increasing or outside (0, 1).
    """

    def __init__(
        self, drops: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, warmup: float = 0.0, warmup_start: float = 0.0
    ) -> None:
        super().__init__(warmup, warmup_start)
        if list(drops) != sorted(drops) or not all(0 < drop < 1 for drop in drops):
            raise ValueError(
                f"drops are increasing fractions of the training, but drops={list(drops)}. Pass e.g. '[0.5, 0.75]'."
            )
        self.drops = tuple(drops)
        self.gamma = gamma

    def factor(self, progress: float) -> float:
        """`gamma` to the number of drops so far."""
        return float(self.gamma ** sum(progress >= drop for drop in self.drops))


class Ramp(Schedule):
    """A straight line up to 1, for what grows over the training, such as the radius of an attack.

    Args:
        start: Factor at the very beginning.
        end: Fraction of the training at which the factor is 1, and stays there.

    Raises:
        ValueError: A start outside [0, 1], an end outside (0, 1].
    """

    def __init__(self, start: float = 0.0, end: float = 1.0) -> None:
        super().__init__()
        if not 0 <= start <= 1 or not 0 < end <= 1:
            raise ValueError(
                f"start is a factor in [0, 1] and end a fraction of the training in (0, 1], but start={start} and "
                f"end={end}. Pass e.g. 0 and 1."
            )
        self.start = start
        self.end = end

    def factor(self, progress: float) -> float:
        """Between `start` and 1."""
        return self.start + (1 - self.start) * min(1.0, progress / self.end)


class Cyclic(Schedule):
    """One triangle: linearly up to 1 at `peak`, then linearly down to 0 (Wong et al., 2020, fast training).

    Args:
        peak: Fraction of the training at which the factor is 1.

    Raises:
        ValueError: A peak outside (0, 1).
    """

    def __init__(self, peak: float = 0.4) -> None:
        super().__init__()
        self.peak = _moment("peak", peak, 0.4)

    def factor(self, progress: float) -> float:
        """Height of the triangle."""
        return progress / self.peak if progress < self.peak else (1 - progress) / (1 - self.peak)


class Switch(Schedule):
    """0 up to a moment of the training and 1 after it, for what begins late.

    Args:
        at: Fraction of the training at which the factor becomes 1.

    Raises:
        ValueError: A moment outside (0, 1).
    """

    def __init__(self, at: float = 0.5) -> None:
        super().__init__()
        self.at = _moment("at", at, 0.6)

    def factor(self, progress: float) -> float:
        """0 or 1."""
        return float(progress >= self.at)


def _moment(name: str, moment: float, usual: float) -> float:
    """The same fraction of the training, if it lies inside it."""
    if not 0 < moment < 1:
        raise ValueError(f"{name} is a fraction of the training in (0, 1), but {name}={moment}. Pass e.g. {usual}.")
    return moment
