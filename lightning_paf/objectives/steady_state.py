"""Steady-state penalty of neural ODEs (Yan et al., 2020)."""

import math
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.nets.ode.block import ODEBlock
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_weight
from lightning_paf.objectives.standard import Natural
from lightning_paf.objectives.wrapper import Wrapper


class SteadyState(Wrapper):
    """An objective plus `weight` times the length of trajectories near their end.

    The length is the integral of |f| over a window around the end `t_end` of each ODE block, averaged over images,
    channels and pixels, and over all passes that train the network. It comes from the same pass as the logits, whose
    solution is continued to the end of the window. Yan, Du, Tan, Feng, "On Robustness of Neural Ordinary Differential
    Equations", ICLR 2020.

    Args:
        objective: Objective to add the term to; null for standard training.
        weight: Weight of the term, >= 0. 0 is that objective, bit for bit.
        window: Begin and end of the integral in units of `t_end`: `[0.9, 1.5]` in the authors' code, `[1, 2]` in the
            paper.
        start_epoch: Number of epochs without the term.

    Raises:
        ValueError: A value outside its range; a network without ODE block, or a window off its grid of steps.
    """

    def __init__(
        self,
        objective: Objective | None = None,
        weight: float = 0.01,
        window: tuple[float, float] = (0.9, 1.5),
        start_epoch: int = 5,
    ) -> None:
        super().__init__(objective or Natural())
        self.weight = checked_weight("weight", weight, 0.01)
        begin, end = window
        valid = 0 <= begin <= 1 <= end < math.inf and begin < end
        self.window = checked("window", (begin, end), valid, "a begin in [0, 1] and an end >= 1", "'[0.9, 1.5]'")
        self.start_epoch = checked("start_epoch", start_epoch, start_epoch >= 0, "at least 0", 5)
        self._epoch = 0

    def bind(self, model: Classifier) -> None:
        """Check that there are ODE blocks whose grid includes the window."""
        super().bind(model)
        blocks = _blocks(model)
        for block in blocks:
            block.require_window(*self._times(block))
        if not blocks:
            raise ValueError(
                f"The network must have an ODE block for SteadyState, got {type(model.net).__name__}. "
                "Pass --model.net TisODENet."
            )

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Note the epoch."""
        super().on_epoch_start(epoch, progress)
        self._epoch = epoch

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Wrapped loss plus the weighted term."""
        if self.weight == 0 or self._epoch < self.start_epoch:
            return super().forward(model, x, y, attack)
        with ExitStack() as stack:
            records = [stack.enter_context(block.recording(*self._times(block))) for block in _blocks(model)]
            result = super().forward(model, x, y, attack)
        lengths = [length for record in records for length in record]
        term = torch.stack(lengths).mean()
        return replace(result, loss=result.loss + self.weight * term, logs={**result.logs, "steady_state": term})

    def _times(self, block: ODEBlock) -> tuple[float, float]:
        return self.window[0] * block.t_end, self.window[1] * block.t_end


def _blocks(model: Classifier) -> list[ODEBlock]:
    return [module for module in model.modules() if isinstance(module, ODEBlock)]
