"""The folder of a run: its configuration, and how a run that was stopped goes on in it."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_paf import __version__
from lightning_paf.checkpoints import newest_checkpoint, step_of
from lightning_paf.extra_loggers import tell_config
from lightning_paf.progress import FILE, Progress
from lightning_paf.run_logs import RunMetrics
from lightning_paf.same_training import check_same_training
from lightning_paf.shared_folder import check_shared
from lightning_paf.utils.files import explained, write_whole

NEWEST = ("auto", "last")
"""Words for the newest valid checkpoint of the run folder, or a new training where there is none."""
WORDS_FOR_CHECKPOINTS = (*NEWEST, "best", "hpc")
_CONFIG = "config.yaml"
_SECONDS = 30.0
"""What a network folder may take to show a new file on another machine."""


class RunFolder(SaveConfigCallback):
    """Saves the merged configuration of `fit` beside the checkpoints; other commands leave it alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it without the checkpoint that this start has read: later commands name their own."""
        checkpoint = self.config.get("ckpt_path")
        check_shared(trainer, _folder(trainer), checkpoint if stage == "fit" else None, _SECONDS)
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder = _folder(trainer)
        if _holds_a_run(folder) and not self.overwrite:
            raise _occupied(folder)
        self.config.pop("ckpt_path", None)
        text = self.parser.dump(self.config, skip_unset=False)
        with explained(folder, "a run folder"):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / _CONFIG, f"# lightning_paf=={__version__}\n{text}".encode())
        tell_config(trainer.loggers, yaml.safe_load(text))


def enter_run_folder(trainer: Trainer, checkpoint: str | None, config: Mapping[str, Any]) -> str | None:
    """Find out what a training goes on from, before the loggers open the run folder.

    Args:
        trainer: Of the training.
        checkpoint: What `--ckpt_path` says: nothing, a file, or a word.
        config: The merged configuration of the training.

    Returns:
        The checkpoint to go on from; None begins a new training.

    Raises:
        ValueError: The folder holds another run; the checkpoint is of a newer version of the package.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return _rehearsed(checkpoint)
    folder = _folder(trainer)
    if checkpoint in NEWEST:
        checkpoint = _newest(trainer, folder)
    elif _holds_a_run(folder) and not _continues(folder, checkpoint):
        raise _occupied(folder)
    if _continues(folder, checkpoint) and check_same_training(folder, config):
        rank_zero_warn(
            "The training goes on for longer than it was begun for: its schedule is stretched to the new length, so "
            "that the learning rate jumps unless it is constant."
        )
    if checkpoint is not None and trainer.overfit_batches:  # type: ignore[attr-defined]
        rank_zero_warn(
            "trainer.overfit_batches takes batches in an order of its own, and a checkpoint does not know its position "
            "in it: the begun epoch takes its first batches again."
        )
    for logger in trainer.loggers:
        if isinstance(logger, RunMetrics):
            logger.resumed_step = _steps_before(checkpoint)
    return checkpoint


def check_writable(folder: Path) -> None:
    """Refuse a run folder that cannot be written, before anything is built. Nothing is written to find out.

    Raises:
        ValueError: It cannot be, as far as its permissions tell.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ValueError(
            f"What a command finds out is written to its run folder, but {there} is read-only or no folder. "
            "Pass --run with a folder that can be written, or that can be made."
        )


def _holds_a_run(folder: Path) -> bool:
    """Whether there is anything to lose: a checkpoint, metrics, or steps; a run that failed before has none of them."""
    table = folder / "metrics.csv"
    rows = len(table.read_text().splitlines()) - 1 if table.is_file() else 0
    if rows > 0 or any((folder / "checkpoints").glob("*.ckpt")):
        return True
    progress = Progress.read(folder / FILE)
    return progress is not None and (progress.step > 0 or not (progress.is_over or progress.process.is_dead()))


def _occupied(folder: Path) -> ValueError:
    return ValueError(
        f"A run folder holds one run, but {folder} already holds one. "
        "Pass another --run, or --ckpt_path auto to continue it."
    )


def _folder(trainer: Trainer) -> Path:
    """The run folder as this rank names it; `trainer.log_dir` is what the first rank says."""
    for logger in trainer.loggers:
        if isinstance(logger, RunMetrics):
            return Path(logger.log_dir)
    return Path(trainer.log_dir or ".")


def _rehearsed(checkpoint: str | None) -> str | None:
    """What `fast_dev_run` begins from: it reads no run folder, and writes none."""
    if checkpoint in NEWEST:
        rank_zero_info("A fast_dev_run begins anew, whatever the run folder holds.")
        return None
    return checkpoint


def _newest(trainer: Trainer, folder: Path) -> str | None:
    """The checkpoint that `auto` means, told."""
    chosen = [saver.dirpath for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
    newest = newest_checkpoint([folder, folder / "checkpoints", *(Path(path) for path in chosen if path)])
    if newest is None:
        rank_zero_info(f"{folder} holds no checkpoint to continue from: a new training begins.")
        return None
    rank_zero_info(f"Continuing from {newest}, step {step_of(newest)}.")
    return str(newest)


def _steps_before(checkpoint: str | None) -> int:
    """Optimiser steps before a checkpoint; no row comes after it where only Lightning knows which one it is."""
    if checkpoint is None:
        return 0
    return sys.maxsize if checkpoint in WORDS_FOR_CHECKPOINTS else step_of(checkpoint)


def _continues(folder: Path, checkpoint: str | None) -> bool:
    """Whether a training that starts from `checkpoint` goes on in its own run folder."""
    if checkpoint is None or checkpoint in WORDS_FOR_CHECKPOINTS:
        return checkpoint is not None
    return Path(checkpoint).resolve().is_relative_to(folder.resolve())
