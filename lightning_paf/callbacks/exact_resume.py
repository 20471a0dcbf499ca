"""Checkpoints from which a training resumes exactly."""

import random
from typing import Any

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
_NOT_OF_THE_OPTIMIZER = {"params", "initial_lr", "swa_lr"}


class ExactResume(Callback):
    """State in checkpoints that an exact resume needs and Lightning leaves out.

    It is restored just before the next batch. The state of every rank consists of its random generators (torch on the
    CPU and its GPU, numpy, python) and the module's `epoch_state()`, if it has one. A checkpoint of the last batch of
    an epoch also records a pending validation, since Lightning would resume with the next epoch. The position in the
    data is in Lightning's checkpoint, but is not restored if the length of the training was computed before, as
    schedules do. On another number of ranks, the position is restored and random states are new.

    Lightning's `StochasticWeightAveraging` resumes exactly only from the end of an epoch.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []
        self._optimizers: list[dict[str, Any]] = []
        self._schedules: list[dict[str, Any]] = []
        self._position: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the states of an earlier run."""
        self._states, self._optimizers, self._schedules, self._position = [], [], [], None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gather the states of all ranks; Lightning calls this hook on every rank."""
        # An interrupted validation is restarted.
        mine = {"random": self._before_validation if _in_validation(trainer) else random_state(pl_module.device)}
        if epoch_state := getattr(pl_module, "epoch_state", None):
            mine["epoch"] = epoch_state()
        checkpoint[KEY] = gathered(mine)
        checkpoint[VERSION_KEY] = checkpoint_version()
        _record_next_stage(trainer, checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the states until training starts, since random numbers are drawn before."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        loop = checkpoint.get("loops", {}).get("fit_loop", {})  # imported weights have none
        self._optimizers = checkpoint.get("optimizer_states", [])
        self._schedules = checkpoint.get("lr_schedulers", [])
        positions = loop.get("state_dict", {}).get("combined_loader")
        self._position = positions[0] if positions else None
        states = checkpoint.get(KEY, [])
        if len(states) == trainer.world_size:
            self._states = states
            return
        rank_zero_warn(
            f"The checkpoint holds random states of {len(states)} ranks, not of {trainer.world_size}: attacks and "
            "augmentation start with new ones, and the means of the current epoch leave out its first part. Everything "
            "else resumes exactly."
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the saved states fit the optimisers and the kind of schedule.

        Otherwise torch would report a missing key, or keep the last learning rate of the other schedule.
        """
        pairs = zip(self._optimizers, trainer.optimizers, strict=False)
        for number, (saved, optimizer) in enumerate(pairs):
            if _layout(saved) != _layout(optimizer.state_dict()):
                raise ValueError(
                    f"The checkpoint must hold the state of {type(optimizer).__name__} with its parameter groups, got "
                    f"another optimizer (number {number}). Pass the same --model.optimizer and --model.decay as before,"
                    " or --model.init CKPT instead of --ckpt_path to start a new training with its weights."
                )
        for before, config in zip(self._schedules, trainer.lr_scheduler_configs, strict=False):
            if ("base_lrs" in before) != ("base_lrs" in config.scheduler.state_dict()):  # absent in that of Plateau
                raise ValueError(
                    "The checkpoint must hold the state of the same kind of schedule, got one of Plateau and one of "
                    "another --model.schedule. Pass the same --model.schedule as before, or --model.init CKPT instead "
                    "of --ckpt_path to start a new training with its weights."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the position in the data and the state of this rank."""
        loader = trainer.train_dataloader
        if self._position is not None and loader is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(self._position)
        if self._states:
            mine = self._states[trainer.global_rank]
            if (load := getattr(pl_module, "load_epoch_state", None)) and "epoch" in mine:
                load(mine["epoch"])
            set_random_state(mine["random"], pl_module.device)
        self._states, self._optimizers, self._schedules, self._position = [], [], [], None
        _start_next_epoch(trainer)
        _skip_saved_step(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the random state for checkpoints saved during the validation."""
        self._before_validation = random_state(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start every step with the BatchNorm statistics of the first rank.

        Checkpoints hold these. `DistributedDataParallel` does so too, except in the first step after a validation.
        """
        if isinstance(trainer.model, DistributedDataParallel):
            trainer.model.require_forward_param_sync = True
        trainer.ckpt_path = None  # otherwise Lightning would keep this periodic checkpoint for ever


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of all random generators, as tensors and plain values."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002  # the state of the global generator
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the result of `random_state`."""
    torch.set_rng_state(state["torch"].cpu())
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _layout(state: dict[str, Any]) -> list[tuple[int, set[str]]]:
    """Return number of parameters and hyper-parameters of every optimiser group."""
    return [(len(group["params"]), set(group) - _NOT_OF_THE_OPTIMIZER) for group in state["param_groups"]]


def _start_next_epoch(trainer: Trainer) -> None:
    """Start the next epoch when a training resumes after a completed one.

    Lightning ends the completed epoch twice; with `max_steps` it also skips the next one.
    """
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        loop._restarting = loop.epoch_loop.restarting = False


def _skip_saved_step(trainer: Trainer) -> None:
    """Save no checkpoint between two optimiser steps.

    It would lack the accumulated gradients. Lightning skips such batches by the step that it saved last, which it does
    not restore.
    """
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, ModelCheckpoint) and saver._every_n_train_steps:
            saver._last_global_step_saved = trainer.global_step


def _in_validation(trainer: Trainer) -> bool:
    """Return whether the hooks after a validation batch of `fit` are running."""
    batches = trainer.fit_loop.epoch_loop.val_loop.batch_progress.current
    return trainer.state.fn == TrainerFn.FITTING and trainer.validating and _is_ending(batches)


def _is_ending(batches: _ReadyCompletedTracker) -> bool:
    """Return whether the hooks after a batch are running."""
    assert isinstance(batches, _ProcessedTracker)
    return batches.completed < batches.processed


def _record_next_stage(trainer: Trainer, loop: dict[str, Any]) -> None:
    """Record in a checkpoint that a validation or the end of the epoch follows.

    From a checkpoint saved right after a batch, Lightning would resume at the next training batch and skip the
    validation, and after the last batch the end of the epoch. It can resume a validation, so the checkpoint records
    that the batch is done and the first validation batch has started.
    """
    epoch_loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    validating = _in_validation(trainer)
    ending = validating or _is_ending(epoch_loop.batch_progress.current)
    if trainer.state.fn != TrainerFn.FITTING or fetcher is None or not ending:
        return
    validates = validating or (not trainer.should_stop and epoch_loop._should_check_val_fx(fetcher))
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
