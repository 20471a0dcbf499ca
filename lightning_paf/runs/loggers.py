"""Metrics of a run, as a table and for TensorBoard: as if the run had not been stopped and continued."""

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from lightning_paf.runs.weights_origin import WeightsOrigin
from lightning_paf.utils.files import write_whole


class _SaysWhy(Logger):
    """What loggers of a run folder have in common: they say how to go on where nothing can be written."""

    check_owner: Callable[[], None] = staticmethod(lambda: None)
    """Called before a write; ends the process if the run folder belongs to another one."""

    @rank_zero_only
    def save(self) -> None:
        """Write what has been logged.

        Raises:
            OSError: The disk is full, or cannot be written to.
        """
        self.check_owner()
        with _explained(str(self.log_dir)):
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left, and close."""
        with _last_words(str(self.log_dir), status):
            super().finalize(status)


class RunMetrics(_SaysWhy, CSVLogger):
    """Appends to the `metrics.csv` of a run that is continued; Lightning's own logger would delete it."""

    resumed_step: int | None = 0
    """Optimiser steps before the checkpoint that the run goes on from; later rows are left out and logged again.

    None keeps all rows: those of other evaluations.
    """
    checkpoint: str | None = None
    """Origin of the evaluated weights, which every row of an evaluation names."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, opened at the first call."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir, self.resumed_step)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row, with the checkpoint of an evaluation."""
        origin: dict[str, Any] = {"checkpoint": self.checkpoint} if self.checkpoint else {}
        super().log_metrics({**metrics, **origin}, step)


class RunEvents(_SaysWhy, TensorBoardLogger):
    """Lets TensorBoard forget what came after the checkpoint that a run goes on from, and tells it nothing twice."""

    table: RunMetrics
    """Whose rows have been told before."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, opened at the first call."""
        if self._experiment is None and self.table.resumed_step:
            self._kwargs["purge_step"] = self.table.resumed_step
            self._default_hp_metric = False  # a placeholder, told when the run began
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Tell what is not there yet."""
        if not self.table.experiment.holds(metrics, step):
            with _explained(self.log_dir):
                super().log_metrics(metrics, step)


class _AppendingWriter(ExperimentWriter):
    """Keeps the rows of steps before the checkpoint, and writes none of them twice.

    The epoch's last rows may be there or not: a checkpoint is made before them, and the run stopped at any time after.
    """

    def __init__(self, log_dir: str, resumed_step: int | None) -> None:
        self._resumed_step = resumed_step
        self._kept: set[tuple[int | None, frozenset[str]]] = set()
        with _explained(log_dir):
            super().__init__(log_dir)

    def holds(self, metrics: Mapping[str, Any], step: int | None) -> bool:
        """Whether there was a row of these metrics when the run was continued."""
        return (step, frozenset(metrics) | {"step"}) in self._kept

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Record a row that is not there yet."""
        if not self.holds(metrics_dict, step):
            super().log_metrics(metrics_dict, step)

    def _check_log_dir_exists(self) -> None:
        """Read what is there, instead of deleting it."""
        table = Path(self.metrics_file_path)
        if not table.is_file():
            return
        self.metrics_keys, rows = _read(table)
        if self._resumed_step is None:
            return
        kept = [row for row in rows if int(row["step"]) < self._resumed_step]
        self._kept = {(int(row["step"]), frozenset(key for key in row if row[key])) for row in kept}
        _write(table, self.metrics_keys, kept)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Add columns to the table that is there, or leave it as it was where the disk is full."""
        table = Path(self.metrics_file_path)
        _, rows = _read(table)
        _write(table, fieldnames, rows)


def loggers(
    folder: Path, others: Logger | list[Logger] | bool | None, evaluated: WeightsOrigin | None = None
) -> list[Logger]:
    """CSV and TensorBoard in exactly this folder, then those that the user asked for; none if false was typed.

    Args:
        folder: Of the training, or of one of the commands that evaluate.
        others: Loggers of the user.
        evaluated: Origin of the weights of an evaluation, whose rows are added to those of others.
    """
    if others is False:
        return []
    more = others if isinstance(others, list) else [others]
    table = RunMetrics(folder.parent, name=folder.name, version="")
    if evaluated is not None:
        table.resumed_step, table.checkpoint = None, str(evaluated)
    events = RunEvents(folder.parent, name=folder.name, version="")
    events.table = table
    return [table, events, *(logger for logger in more if isinstance(logger, Logger))]


def _read(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows; the last row may be half a line, and is left out then."""
    with table.open(newline="") as stream:
        reader = csv.DictReader(line for line in stream if line.endswith("\n"))
        rows = list(reader)
    return list(reader.fieldnames or []), rows


def _write(table: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write all rows, or leave what was there."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(table, lines.getvalue().encode())


def _last_words(folder: str, status: str) -> contextlib.AbstractContextManager[None]:
    """After a failure, a second one must not hide the first."""
    return contextlib.suppress(OSError) if status == "failed" else _explained(folder)


@contextlib.contextmanager
def _explained(folder: str) -> Iterator[None]:
    """Say how to go on where metrics cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            raise
        raise OSError(
            f"Metrics could not be written to {folder} ({reason}); checkpoints are as they were. "
            "Make room, and continue with --ckpt_path auto."
        ) from error
