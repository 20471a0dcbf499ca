"""Checkpoints from which a training resumes exactly."""

import random
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.progress import _ProcessedTracker, _ReadyCompletedTracker
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.parallel import DistributedDataParallel

from lightning_paf.runs.checkpoint_version import KEY as VERSION_KEY
from lightning_paf.runs.checkpoint_version import checkpoint_version
from lightning_paf.utils.distributed import gathered

KEY = "rank_states"


@runtime_checkable
class HasEpochState(Protocol):
    """A module with a state that lasts one epoch, such as the means that it logs."""

    def epoch_state(self) -> dict[str, Any]:
        """Return the state of this rank."""

    def load_epoch_state(self, state: dict[str, Any]) -> None:
        """Restore the state of this rank."""


class ExactResume(Callback):
    """Adds the state that Lightning leaves out of checkpoints, and restores it just before the next batch.

    This is the random state of every rank (torch on the CPU and its GPU, numpy, python), the epoch state of the module,
    and whether a validation is due: from a checkpoint of the last batch of an epoch, Lightning would resume with the
    next epoch. The position in the data is in the checkpoint, but Lightning does not restore it if the length of the
    training was read before, as schedules do. On another number of ranks the data position is restored too, but random
    states are those of a new training.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []
        self._optimizers: list[dict[str, Any]] = []
        self._position: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the states of an earlier run."""
        self._states, self._optimizers, self._position = [], [], None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Collect the states of all ranks; Lightning calls this on each of them."""
        # An interrupted validation is restarted.
        mine = {"random": self._before_validation if _in_validation(trainer) else random_state(pl_module.device)}
        if isinstance(pl_module, HasEpochState):
            mine["epoch"] = pl_module.epoch_state()
        checkpoint[KEY] = gathered(mine)
        checkpoint[VERSION_KEY] = checkpoint_version()
        _note_what_follows(trainer, checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the states until training starts; random numbers are drawn before that."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        loop = checkpoint.get("loops", {}).get("fit_loop", {})  # imported weights have none
        self._optimizers = checkpoint.get("optimizer_states", [])
        positions = loop.get("state_dict", {}).get("combined_loader")
        self._position = positions[0] if positions else None
        states = checkpoint.get(KEY, [])
        if len(states) == trainer.world_size:
            self._states = states
            return
        rank_zero_warn(
            f"The checkpoint holds the random states of {len(states)} ranks, not of {trainer.world_size}: attacks and "
            "augmentation start with new ones, and the means of the current epoch leave out its first part. Everything "
            "else resumes exactly."
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse the state of another optimiser, which torch would report as a missing key."""
        pairs = zip(self._optimizers, trainer.optimizers, strict=False)
        for number, (saved, optimizer) in enumerate(pairs):
            if _layout(saved) != _layout(optimizer.state_dict()):
                raise ValueError(
                    f"The checkpoint must hold the state of {type(optimizer).__name__} with its parameter groups, got "
                    f"another optimizer (number {number}). Pass the same --model.optimizer and --model.decay as before."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the position and the states of this rank."""
        loader = trainer.train_dataloader
        if self._position is not None and loader is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(self._position)
        if self._states:
            mine = self._states[trainer.global_rank]
            if isinstance(pl_module, HasEpochState) and "epoch" in mine:
                pl_module.load_epoch_state(mine["epoch"])
            set_random_state(mine["random"], pl_module.device)
        self._states, self._optimizers, self._position = [], [], None
        _begin_next_epoch(trainer)
        _save_no_step_twice(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the random state, for a checkpoint in the middle of the validation."""
        self._before_validation = random_state(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start every step with the BatchNorm statistics of the first rank, which are those in checkpoints.

        `DistributedDataParallel` does so by itself, but not in the first step after a validation.
        """
        if isinstance(trainer.model, DistributedDataParallel):
            trainer.model.require_forward_param_sync = True


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of all generators that training draws from, as tensors and plain values.

    Args:
        device: The GPU whose generator is included, if it is one.
    """
    _, keys, *rest = np.random.get_state()  # noqa: NPY002  # the global one is what is saved
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore a state of `random_state`.

    Args:
        state: Result of `random_state`.
        device: The GPU of this rank, if it is one.
    """
    torch.set_rng_state(state["torch"].cpu())
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _layout(state: dict[str, Any]) -> list[tuple[int, set[str]]]:
    """Return the number of parameters and the hyper-parameters of every group of an optimiser."""
    return [(len(group["params"]), set(group) - {"params"}) for group in state["param_groups"]]


def _begin_next_epoch(trainer: Trainer) -> None:
    """Resume after a completed epoch, which Lightning ends twice; with `max_steps` it also skips the next one."""
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        loop._restarting = loop.epoch_loop.restarting = False


def _save_no_step_twice(trainer: Trainer) -> None:
    """Save no checkpoint between two optimiser steps, since it would lack the accumulated gradients.

    Lightning recognises such a batch by the step that it saved last, and forgets that step over a restart.
    """
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, ModelCheckpoint) and saver._every_n_train_steps:
            saver._last_global_step_saved = trainer.global_step


def _in_validation(trainer: Trainer) -> bool:
    """Return whether a batch of a validation during training is ending."""
    batches = trainer.fit_loop.epoch_loop.val_loop.batch_progress.current
    return trainer.state.fn == TrainerFn.FITTING and trainer.validating and _is_ending(batches)


def _is_ending(batches: _ReadyCompletedTracker) -> bool:
    """Return whether a batch has been processed and the hooks at its end are running."""
    assert isinstance(batches, _ProcessedTracker)
    return batches.completed < batches.processed


def _note_what_follows(trainer: Trainer, loop: dict[str, Any]) -> None:
    """Record in a checkpoint right after a batch that a validation or the end of the epoch follows.

    Lightning resumes such a checkpoint at the next training batch and skips the validation; after the last batch of an
    epoch it skips the epoch's end, too. It can resume a validation: so the checkpoint records that the batch is done
    and that the first batch of the validation has started.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    ends, fetcher = _is_ending(epoch_loop.batch_progress.current), trainer.fit_loop._data_fetcher
    begun = _in_validation(trainer)
    if trainer.state.fn != TrainerFn.FITTING or fetcher is None or not (ends or begun):
        return
    validates = begun or (not trainer.should_stop and epoch_loop._should_check_val_fx(fetcher))
    if not validates and not epoch_loop.batch_progress.is_last_batch:
        return
    for count in loop["epoch_loop.batch_progress"].values():
        if isinstance(count, dict):
            count["completed"] = count["processed"]
    if validates:
        first = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        loop["epoch_loop.val_loop.batch_progress"].update(total=first, current=dict(first))
    else:
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
