"""Learning-rate schedule that resumes with the configured hyper-parameters."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class StepSchedule(LambdaLR):
    """Learning-rate schedule over optimiser steps.

    A resumed training restores its position. Learning rate, momentum, weight decay and all other hyper-parameters are
    those of the configuration; torch would restore those of the checkpoint, such as the rate 0 at the end of a cosine.

    Args:
        optimizer: Optimiser with its initial learning rates.
        factor: Function from the number of steps to the factor of the learning rates.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        super().__init__(optimizer, factor)
        scheduled = ("params", "lr")
        self._configured = [
            {name: value for name, value in group.items() if name not in scheduled} for group in optimizer.param_groups
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the rates, as `LambdaLR` does."""
        return {name: value for name, value in super().state_dict().items() if name != "_configured"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, after the state of the optimiser."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        self._last_lr = [
            rate * factor(self.last_epoch) for rate, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, configured, rate in zip(self.optimizer.param_groups, self._configured, self._last_lr, strict=True):
            group.update(configured, lr=rate)
