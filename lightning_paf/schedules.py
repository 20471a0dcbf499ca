"""Schedules as functions of training progress, from 0 to 1.

The module multiplies the learning rate by `schedule(progress)` at every optimiser step, so a recipe never repeats
numbers of epochs or steps. A schedule may change the momentum too. The radius of an attack and the fraction of real
images have schedules too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau


class StepSchedule(LambdaLR):
    """Learning-rate schedule over optimiser steps.

    A resumed training restores its position. Learning rate, momentum, weight decay and all other hyper-parameters are
    those of the configuration; torch would restore those of the checkpoint, such as the rate 0 at the end of a cosine.
    Values that an optimiser changes itself, such as the estimated rate of Prodigy, are those of the checkpoint.

    Args:
        optimizer: Optimiser with its initial learning rates.
        factor: Function from the number of steps to the factor of the learning rates.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        super().__init__(optimizer, factor)
        scheduled = ("params", "lr")
        self.configured = [
            {name: value for name, value in group.items() if name not in scheduled} for group in optimizer.param_groups
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, after the state of the optimiser."""
        before = state_dict.get("configured") or [{}] * len(self.configured)  # absent in earlier versions
        rates = [  # a callback may have lowered those of the checkpoint
            saved if old.get("initial_lr") == new["initial_lr"] else rate
            for old, new, saved, rate in zip(
                before, self.configured, state_dict["base_lrs"], self.base_lrs, strict=True
            )
        ]
        super().load_state_dict({**state_dict, "base_lrs": rates, "configured": self.configured})
        for group, old, new in zip(self.optimizer.param_groups, before, self.configured, strict=True):
            group.update({name: value for name, value in new.items() if name not in old or old[name] != value})
        # The factors also set the momentum of a cycle.
        self._last_lr = [
            rate * factor(self.last_epoch) for rate, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class Schedule(ABC):
    """A factor for the learning rate or another quantity that changes during training.

    Args:
        warmup: Fraction of the training during which the factor rises linearly from `warmup_start`.
        warmup_start: Factor at the very beginning, relative to the factor after the warm-up.

    Raises:
        ValueError: `warmup` outside [0, 1) or `warmup_start` outside [0, 1].
    """

    low_momentum: float | None = None
    """Lowest momentum of a schedule that changes the momentum too."""

    def __init__(self, warmup: float = 0.0, warmup_start: float = 0.0) -> None:
        _require(0 <= warmup < 1, "warmup must be a fraction of the training in [0, 1)", warmup, 0.025)
        _require(0 <= warmup_start <= 1, "warmup_start must be a factor in [0, 1]", warmup_start, 0.04)
        self.warmup = warmup
        self.warmup_start = warmup_start

    def __call__(self, progress: float) -> float:
        """Factor at `progress`, which is clipped to [0, 1]."""
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup:
            rise = progress / self.warmup
            return (self.warmup_start + (1 - self.warmup_start) * rise) * self.factor(0.0)
        return self.factor((progress - self.warmup) / (1 - self.warmup))

    def check_fraction(self, what: str) -> None:
        """Check that all factors are in [0, 1].

        Args:
            what: Name of the scaled quantity, for the message.

        Raises:
            ValueError: Some factor is outside.
        """
        factors = [self(i / 100) for i in range(101)]
        if not (min(factors) >= 0 and max(factors) <= 1):
            raise ValueError(
                f"{what} must be scaled by a factor in [0, 1], got {type(self).__name__} from {min(factors):g} to "
                f"{max(factors):g}. Pass the largest value, and a schedule that scales it down."
            )

    def momentum(self, progress: float, largest: float) -> float:
        """Momentum at `progress`, of an optimiser with momentum `largest`."""
        del progress
        return largest

    def scheduler(self, optimizer: Optimizer, steps: float) -> dict[str, Any]:
        """Build Lightning's configuration of the scheduler of an optimiser.

        Args:
            optimizer: Optimiser whose learning rate, and momentum if `low_momentum` is set, the schedule changes.
            steps: Number of optimiser steps of the training.

        Raises:
            ValueError: An optimiser without the momentum to change.
        """
        cycles = self.low_momentum is not None
        momenta: list[Any] = [group.get("momentum") for group in optimizer.param_groups if cycles]
        if not all(momenta):
            raise ValueError(
                f"The optimiser must have a momentum for low_momentum={self.low_momentum:g}, got "
                f"{type(optimizer).__name__} without one. Pass --model.optimizer.momentum 0.95, or "
                "--model.schedule.low_momentum null."
            )

        def factor(step: int) -> float:
            # Loading a checkpoint replaces the groups.
            for group, largest in zip(optimizer.param_groups, momenta, strict=False):
                group["momentum"] = self.momentum(step / steps, largest)
            return self(step / steps)

        return {"scheduler": StepSchedule(optimizer, factor), "interval": "step", "name": "lr"}

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

    Raises:
        ValueError: A negative or infinite `final`.
    """

    def __init__(self, final: float = 0.0, warmup: float = 0.0, warmup_start: float = 0.0) -> None:
        super().__init__(warmup, warmup_start)
        _require(0 <= final < math.inf, "final must be a finite factor >= 0", final, 0.01)
        self.final = final

    def factor(self, progress: float) -> float:
        """Cosine between 1 and `final`."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class Piecewise(Schedule):
    """A step schedule.

    Args:
        drops: Increasing fractions of the training at which the factor is multiplied by `gamma`.
        gamma: Multiplier at each drop. Rice et al. (2020) and Pang et al. (2021) divide by 10.
        warmup: Fraction of the training during which the factor rises linearly from `warmup_start`.
        warmup_start: Factor at the very beginning.

    Raises:
        ValueError: Drops that are not increasing or outside (0, 1), or a negative or infinite `gamma`.
    """

    def __init__(
        self, drops: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, warmup: float = 0.0, warmup_start: float = 0.0
    ) -> None:
        super().__init__(warmup, warmup_start)
        fits = list(drops) == sorted(drops) and all(0 < drop < 1 for drop in drops)
        _require(fits, "drops must be increasing fractions of the training in (0, 1)", list(drops), "'[0.5, 0.75]'")
        _require(0 <= gamma < math.inf, "gamma must be a finite factor >= 0", gamma, 0.1)
        self.drops = tuple(drops)
        self.gamma = gamma

    def factor(self, progress: float) -> float:
        """`gamma` to the number of drops so far."""
        return float(self.gamma ** sum(progress >= drop for drop in self.drops))


class Ramp(Schedule):
    """A linear increase up to 1, for example of an attack's radius.

    Args:
        start: Factor at the very beginning.
        end: Fraction of the training after which the factor is 1.

    Raises:
        ValueError: A start outside [0, 1], an end outside (0, 1].
    """

    def __init__(self, start: float = 0.0, end: float = 1.0) -> None:
        super().__init__()
        _require(0 <= start <= 1, "start must be a factor in [0, 1]", start, 0)
        _require(0 < end <= 1, "end must be a fraction of the training in (0, 1]", end, 1)
        self.start = start
        self.end = end

    def factor(self, progress: float) -> float:
        """Between `start` and 1."""
        return self.start + (1 - self.start) * min(1.0, progress / self.end)


class Cyclic(Schedule):
    """Triangle from 0 up to 1 at `peak` and down to 0 (Wong et al., 2020).

    Args:
        peak: Fraction of the training at which the factor is 1.
        low_momentum: Momentum at the peak. It falls to this value while the learning rate rises, and returns to that of
            the optimiser. 0.8 in PyTorch's `CyclicLR` (momentum 0.9), 0.85 in its `OneCycleLR` (momentum 0.95); null
            keeps the momentum constant.

    Raises:
        ValueError: A peak outside (0, 1), or a momentum outside [0, 1).
    """

    def __init__(self, peak: float = 0.4, low_momentum: float | None = None) -> None:
        super().__init__()
        _require(0 < peak < 1, "peak must be a fraction of the training in (0, 1)", peak, 0.4)
        _require(low_momentum is None or 0 <= low_momentum < 1, "low_momentum must be in [0, 1)", low_momentum, 0.85)
        self.peak = peak
        self.low_momentum = low_momentum

    def momentum(self, progress: float, largest: float) -> float:
        """Momentum at `progress`, between `largest` and `low_momentum`."""
        low = largest if self.low_momentum is None else self.low_momentum
        return largest + (low - largest) * self.height(progress)

    def height(self, progress: float) -> float:
        """Position in the cycle, from 0 at the ends to 1 at the peak."""
        return progress / self.peak if progress < self.peak else (1 - progress) / (1 - self.peak)

    def factor(self, progress: float) -> float:
        """Height of the triangle."""
        return self.height(progress)


class OneCycle(Cyclic):
    """Half a cosine from 1/25 up to 1 at `peak`, and another one down to 4e-6.

    These are the factors of PyTorch's `OneCycleLR` with its default options, which also cycles the momentum: its
    default is a momentum of 0.95 in the optimiser and `low_momentum` 0.85.

    Args:
        peak: Fraction of the training at which the factor is 1.
        low_momentum: Momentum at the peak; null keeps that of the optimiser.
    """

    def height(self, progress: float) -> float:
        """Position in the cycle, from 0 at the ends to 1 at the peak."""
        return 0.5 * (1 - math.cos(math.pi * super().height(progress)))

    def factor(self, progress: float) -> float:
        """Between the factor at the start or end, and 1."""
        end = 1 / 25 if progress < self.peak else 1 / 25e4
        return end + (1 - end) * self.height(progress)


class Plateau(Schedule):
    """Learning rate that drops whenever a metric stops improving.

    It depends on no progress, so it schedules nothing but the learning rate.

    Args:
        monitor: Metric of the validation, such as `val/acc_pgd20` of `--val_attack`.
        gamma: Multiplier at each drop.
        patience: Number of epochs with a validation, and without improvement, before a drop.
        mode: `max` if a larger metric is better, `min` for losses.

    Raises:
        ValueError: `gamma` outside (0, 1), a negative patience or an unknown mode.
    """

    def __init__(
        self, monitor: str, gamma: float = 0.1, patience: int = 5, mode: Literal["min", "max"] = "max"
    ) -> None:
        super().__init__()
        _require(0 < gamma < 1, "gamma must be in (0, 1)", gamma, 0.1)
        _require(patience >= 0, "patience must be at least 0", patience, 5)
        _require(mode in ("min", "max"), "mode must be min or max", mode, "max")
        self.monitor, self.gamma, self.patience, self.mode = monitor, gamma, patience, mode

    def scheduler(self, optimizer: Optimizer, steps: float) -> dict[str, Any]:
        """Build the configuration of PyTorch's `ReduceLROnPlateau`."""
        del steps
        drops = ReduceLROnPlateau(optimizer, self.mode, factor=self.gamma, patience=self.patience)
        return {"scheduler": drops, "interval": "epoch", "monitor": self.monitor, "name": "lr"}

    def factor(self, progress: float) -> float:
        """Refuse to scale another quantity."""
        raise ValueError("The schedule must depend on progress here, got Plateau. Pass e.g. Cosine.")


class Switch(Schedule):
    """A step from 0 to 1, for example to add real images late.

    Args:
        at: Fraction of the training at which the factor becomes 1.

    Raises:
        ValueError: A fraction outside (0, 1).
    """

    def __init__(self, at: float = 0.5) -> None:
        super().__init__()
        _require(0 < at < 1, "at must be a fraction of the training in (0, 1)", at, 0.6)
        self.at = at

    def factor(self, progress: float) -> float:
        """0 or 1."""
        return float(progress >= self.at)


def _require(fits: bool, rule: str, given: object, example: object) -> None:
    if not fits:
        raise ValueError(f"{rule}, got {given}. Pass e.g. {example}.")
