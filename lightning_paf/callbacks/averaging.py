"""An exponential moving average of the weights whose memory grows while training begins."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmupDecay:
    """Update rule `average <- d * average + (1 - d) * current` with `d = min(decay, (1 + t) / (10 + t))`.

    d is 0 for the first `copies` updates, and t counts those after them.

    A class and not a closure, so that processes can be spawned with it.

    Args:
        decay: Upper bound of `d`.
        grows: False: d is `decay` at once.
        copies: Number of updates that copy.
    """

    def __init__(self, decay: float, grows: bool = True, copies: int = 0) -> None:
        self.decay = decay
        self.grows = grows
        self.copies = copies

    def at(self, step: Tensor | int) -> Tensor:
        """`d` after `step` updates, on the device of `step`: reading it would make the program wait for the device."""
        updates = torch.as_tensor(step).double() - self.copies
        decay = (1 + updates) / (10 + updates) if self.grows else torch.full_like(updates, self.decay)
        return torch.where(updates < 0, 0.0, decay.clamp(max=self.decay))

    @torch.no_grad()
    def __call__(self, averages: Sequence[Tensor], currents: Sequence[Tensor], count: Tensor | int) -> None:
        """Update `averages` in place; tensors of one call share their dtype and device.

        Args:
            averages: The averaged tensors.
            currents: The tensors of the trained model, in the same order.
            count: Number of updates so far.
        """
        if averages[0].is_floating_point():
            differences = torch._foreach_sub(list(currents), list(averages))
            torch._foreach_mul_(differences, (1 - self.at(count)).to(averages[0]))
            torch._foreach_add_(list(averages), differences)
        else:
            torch._foreach_copy_(list(averages), list(currents))  # counters (`num_batches_tracked`) have no average


class WarmupEMA(WeightAveraging):
    """Averages the weights over the training; validation, checkpoints and tests see the average.

    The average is updated with the decay `min(decay, (1 + t) / (10 + t))`, t being the number of updates before (Gowal
    et al., 2020, section on model weight averaging): it starts as a copy of the weights at the first update and forgets
    the early ones quickly. A checkpoint holds the average under `state_dict` and what the optimiser works on under
    `current_model_state`; resuming continues both. In `validate`, `test` and `predict` it does nothing: the checkpoint
    is the average.

    Args:
        decay: Upper bound of the decay; 0.995 remembers about 200 updates.
        use_buffers: Average the statistics of BatchNorm too. False copies the current ones, as the code of Wang et al.
            (2023) does. Integer counters are copied either way.
        copy_for: Share of the training during which the average is a copy of the weights; t counts the updates after
            it. 0.025 in the PyTorch code of Rade & Moosavi-Dezfooli and of Wang et al. (2023).
        grows: False keeps the decay constant.
        every: Update after every optimiser `step`, or once an `epoch`, before its validation (Cui et al., 2023, average
            the weights of all epochs, with 0.9).

    Raises:
        ValueError: A decay or share outside [0, 1); checkpoints without callback states, which would lose the average;
            a share of epochs whose number is not set.
    """

    def __init__(
        self,
        decay: float = 0.995,
        use_buffers: bool = True,
        copy_for: float = 0.0,
        grows: bool = True,
        every: Literal["step", "epoch"] = "step",
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is a factor in [0, 1), but decay={decay}. Pass e.g. --averaging.decay 0.995.")
        if not 0 <= copy_for < 1:
            raise ValueError(
                f"copy_for is a share of the training in [0, 1), but copy_for={copy_for}. "
                "Pass e.g. --averaging.copy_for 0.025."
            )
        self._rule = WarmupDecay(decay, grows)
        super().__init__(use_buffers=use_buffers, multi_avg_fn=self._rule)
        self.copy_for = copy_for
        self.every = every
        self._swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average at the start of `fit`, and drop it for other commands."""
        self._swapped = False
        if stage != "fit":
            # After `fit` the model holds the average. Kept, it would overwrite what is loaded for `test`
            # by the weights under `current_model_state`.
            self._average_model = None
            return
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            raise ValueError(
                "Averaging needs complete checkpoints, but save_weights_only=True saves the weights before averaging. "
                "Pass --checkpoint.save_weights_only false, or --averaging null."
            )
        if self.every == "epoch" and self.copy_for and (trainer.max_epochs or 0) < 1:
            raise ValueError(
                f"copy_for={self.copy_for} is a share of the epochs, but their number is not set. "
                "Pass e.g. --trainer.max_epochs 200, or --averaging.copy_for 0."
            )
        # The model itself reaches its device only later; an average left on the CPU would slow down every step.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the number of updates that copy."""
        super().on_train_start(trainer, pl_module)
        updates = trainer.estimated_stepping_batches if self.every == "step" else trainer.max_epochs
        self._rule.copies = round(self.copy_for * (updates or 0))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average: with the last batch of an epoch, not at its end, which comes after its validation."""
        if self.every == "step" or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the model."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = self._average_model is not None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back the trained weights."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save both, the average under `state_dict`, also at a signal in the middle of a validation."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            average, current = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint.update(state_dict=average, current_model_state=current)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore both where `fit` resumes; elsewhere the model already holds the average."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
