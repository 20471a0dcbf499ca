"""The folder of a run: its configuration, its metrics, and how a run that was stopped goes on in it."""

import csv
import sys
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_info

from lightning_paf.checkpoints import newest_checkpoint, step_of

NEWEST = ("auto", "last")
"""Words for the newest valid checkpoint of the run folder, or a new training where there is none."""
WORDS_FOR_CHECKPOINTS = (*NEWEST, "best", "hpc")


class RunFolder(SaveConfigCallback):
    """Saves the merged configuration of `fit` beside the checkpoints; other commands leave it alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it; how a run was continued is no part of it, or a copy of the run would start at its end."""
        if stage != "fit":
            return
        if _continues(Path(trainer.log_dir or "."), self.config.get("ckpt_path")):
            self.config["ckpt_path"] = None
        super().setup(trainer, pl_module, stage)


class RunMetrics(CSVLogger):
    """Appends to the `metrics.csv` of a run that is continued; Lightning's own logger would delete it."""

    resumed_step = 0
    """Optimiser steps before the checkpoint that the run goes on from; later rows are left out and logged again."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, opened at the first call."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir, self.resumed_step)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    """Keeps the rows of steps before the checkpoint, and writes none of them twice.

    The epoch's last rows may be there or not: a checkpoint is made before them, and the run stopped at any time after.
    """

    def __init__(self, log_dir: str, resumed_step: int) -> None:
        self._resumed_step = resumed_step
        self._kept: set[tuple[int, frozenset[str]]] = set()
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Read what is there, instead of deleting it."""
        table = Path(self.metrics_file_path)
        if not table.is_file():
            return
        with table.open(newline="") as stream:
            reader = csv.DictReader(line for line in stream if line.endswith("\n"))  # the last may be half a line
            rows = list(reader)
        kept = [row for row in rows if int(row["step"]) < self._resumed_step]
        self._kept = {(int(row["step"]), frozenset(key for key in row if row[key])) for row in kept}
        self.metrics_keys = list(reader.fieldnames or [])
        begun = table.with_name(".unfinished")
        with begun.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.metrics_keys)
            writer.writeheader()
            writer.writerows(kept)
        begun.replace(table)

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Record a row that is not there yet."""
        if (step, frozenset(metrics_dict) | {"step"}) not in self._kept:
            super().log_metrics(metrics_dict, step)


def enter_run_folder(trainer: Trainer, checkpoint: str | None) -> str | None:
    """Find out what a training goes on from, before the loggers open the run folder.

    Args:
        trainer: Of the training.
        checkpoint: What `--ckpt_path` says: nothing, a file, or a word.

    Returns:
        The checkpoint to go on from; None begins a new training.

    Raises:
        ValueError: The folder holds another run.
    """
    folder = Path(trainer.log_dir or ".")
    held = (folder / "config.yaml").exists() or (folder / "checkpoints").exists()
    if checkpoint in NEWEST:
        checkpoint = _newest(trainer, folder)
    elif held and not trainer.fast_dev_run and not _continues(folder, checkpoint):  # type: ignore[attr-defined]
        raise ValueError(
            f"A run folder holds one run, but {folder} already holds one. "
            "Pass another --run, or --ckpt_path auto to continue it."
        )
    for logger in trainer.loggers:
        if isinstance(logger, RunMetrics):
            logger.resumed_step = _steps_before(checkpoint)
    return checkpoint


def loggers(folder: Path, others: Logger | list[Logger] | bool | None) -> list[Logger]:
    """CSV and TensorBoard in exactly this folder, then those that the user asked for; none if false was typed."""
    if others is False:
        return []
    more = others if isinstance(others, list) else [others]
    ours = [logger(folder.parent, name=folder.name, version="") for logger in (RunMetrics, TensorBoardLogger)]
    return [*ours, *(logger for logger in more if isinstance(logger, Logger))]


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
