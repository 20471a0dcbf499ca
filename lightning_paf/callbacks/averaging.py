"""Exponential moving average of the weights, with a decay that grows at first."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmupDecay:
    """Update rule of an exponential moving average with a growing decay.

    `average <- d * average + (1 - d) * current` with `d = min(decay, (1 + t) / (10 + t))`. d is 0 for the first
    `copies` updates, which t does not count. A class and not a closure, so that it can be pickled.

    Args:
        decay: Upper bound of `d`.
        grows: Whether `d` grows; otherwise it is `decay` from the start.
        copies: Number of updates that copy.
    """

    def __init__(self, decay: float, grows: bool = True, copies: int = 0) -> None:
        self.decay = decay
        self.grows = grows
        self.copies = copies

    def at(self, step: Tensor | int) -> Tensor:
        """Return `d` after `step` updates.

        It is a tensor on the device of `step`, to avoid a synchronisation.
        """
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
            torch._foreach_copy_(list(averages), list(currents))  # counters such as `num_batches_tracked`


class WarmupEMA(WeightAveraging):
    """Exponential moving average of the weights, used by validation and tests.

    After t updates the decay is `min(decay, (1 + t) / (10 + t))` (Gowal et al., 2020, section on model weight
    averaging): the average starts as a copy of the weights at the first update, and early weights soon have little
    influence. A checkpoint holds the average under `state_dict` and the trained weights under `current_model_state`; a
    resumed training restores both. `validate`, `test` and `predict` load the average and ignore this callback.

    Args:
        decay: Upper bound of the decay; 0.995 averages over about 200 updates.
        use_buffers: Also average the statistics of BatchNorm. False copies the current ones, as the code of Wang et al.
            (2023) does. Integer counters are always copied.
        copy_for: Fraction of the training during which the average is a copy of the weights; t counts later updates
            only. 0.025 in the PyTorch code of Rade & Moosavi-Dezfooli and of Wang et al. (2023).
        grows: Whether the decay grows; false keeps it constant.
        every: Update after every optimiser `step`, or once per `epoch`, before its validation (Cui et al., 2023, with
            decay 0.9).

    Raises:
        ValueError: `decay` or `copy_for` outside [0, 1); checkpoints of weights only, which would lose the average; a
            fraction of an unknown number of epochs.
    """

    def __init__(
        self,
        decay: float = 0.995,
        use_buffers: bool = True,
        copy_for: float = 0.0,
        grows: bool = True,
        every: Literal["step", "epoch"] = "step",
    ) -> None:
        for option, value, example in (("decay", decay, 0.995), ("copy_for", copy_for, 0.025)):
            if not 0 <= value < 1:
                raise ValueError(f"{option} must be in [0, 1), got {value}. Pass --averaging.{option} {example}.")
        self._rule = WarmupDecay(decay, grows)
        super().__init__(use_buffers=use_buffers, multi_avg_fn=self._rule)
        self.copy_for = copy_for
        self.every = every
        self._swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average for `fit`, and delete it for other commands."""
        self._swapped = False
        if stage != "fit":
            # An average left over from `fit` would replace loaded weights by those under `current_model_state`.
            self._average_model = None
            return
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            raise ValueError(
                "save_weights_only must be false with averaging, got true, which would save only the current weights. "
                "Pass --checkpoint.save_weights_only false, or --averaging null."
            )
        if self.every == "epoch" and self.copy_for and (trainer.max_epochs or 0) < 1:
            raise ValueError(
                f"max_epochs must be set for copy_for={self.copy_for}, a fraction of the epochs, got "
                f"{trainer.max_epochs}. Pass --trainer.max_epochs 200, or --averaging.copy_for 0."
            )
        # The model is moved to its device later; an average on the CPU would slow down every step.
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
        """Update the average; once per epoch, after its last batch, before the validation."""
        if self.every == "step" or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the average into the model."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = self._average_model is not None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the trained weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average under `state_dict`, even when a signal stops a validation."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            average, current = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint.update(state_dict=average, current_model_state=current)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore both when `fit` resumes."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
