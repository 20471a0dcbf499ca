"""Loggers of a run: CSV and TensorBoard, resumed without duplicates, and others."""

import contextlib
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from lightning_paf.runs.identity import is_service
from lightning_paf.runs.metrics_table import read_table
from lightning_paf.runs.weights_origin import WeightsOrigin
from lightning_paf.utils.files import write_whole

EXTRAS: Mapping[str, str] = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}
"""Loggers whose package is optional, and the name of its module and extra."""


class _RunLogger(Logger):
    """Base of the loggers of a run folder, with explained errors of the file system."""

    check_owner: Callable[[], None] = staticmethod(lambda: None)
    """Function called before a write; ends a process that has lost the run folder."""

    @rank_zero_only
    def save(self) -> None:
        """Write the logged metrics.

        Raises:
            OSError: The disk is full, or cannot be written to.
        """
        self.check_owner()
        with _explained(str(self.log_dir)):
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rest and close. After a failure, further errors are suppressed."""
        with contextlib.suppress(OSError) if status == "failed" else _explained(str(self.log_dir)):
            super().finalize(status)


class RunMetrics(_RunLogger, CSVLogger):
    """CSV logger that appends to the `metrics.csv` of a resumed run.

    Lightning's own logger would delete the file.
    """

    resumed_step: int | None = 0
    """Optimiser steps before the checkpoint; later rows are dropped. None keeps all."""
    takeover: Sequence[str] = ()
    """Line about the dead owner of the run folder, logged once the folder is accepted."""
    checkpoint: str | None = None
    """Origin of the evaluated weights, a column of the table of an evaluation."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, created on first use."""
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir, self.resumed_step)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        origin: dict[str, Any] = {"checkpoint": self.checkpoint} if self.checkpoint else {}
        super().log_metrics({**metrics, **origin}, step)


class RunEvents(_RunLogger, TensorBoardLogger):
    """TensorBoard logger that purges events after the checkpoint of a resumed run.

    No row is logged twice.
    """

    table: RunMetrics
    """Table of the same run, with the rows that were logged before."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, created on first use."""
        if self._experiment is None and self.table.resumed_step:
            self._kwargs["purge_step"] = self.table.resumed_step
            self._default_hp_metric = False  # logged when the run was started
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a new row."""
        if not self.table.experiment.holds(metrics, step):
            with _explained(self.log_dir):
                super().log_metrics(metrics, step)


class _AppendingWriter(ExperimentWriter):
    """Writer that keeps rows of steps before the checkpoint and does not repeat them.

    The last rows of an epoch can be missing, since its checkpoint is written before them.
    """

    def __init__(self, log_dir: str, resumed_step: int | None) -> None:
        self._resumed_step = resumed_step
        self._kept: set[tuple[int | None, frozenset[str]]] = set()
        with _explained(log_dir):
            super().__init__(log_dir)

    def holds(self, metrics: Mapping[str, Any], step: int | None) -> bool:
        """Return whether a row with these metrics existed when the run was resumed."""
        return (step, frozenset(metrics) | {"step"}) in self._kept

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Record a new row."""
        if not self.holds(metrics_dict, step):
            super().log_metrics(metrics_dict, step)

    def _check_log_dir_exists(self) -> None:
        """Read the table instead of deleting it."""
        table = Path(self.metrics_file_path)
        if not table.is_file():
            return
        self.metrics_keys, rows = read_table(table)
        if self._resumed_step is None:
            return
        kept = [row for row in rows if int(row["step"]) < self._resumed_step]
        self._kept = {(int(row["step"]), frozenset(key for key in row if row[key])) for row in kept}
        _write(table, self.metrics_keys, kept)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Add columns to the table, atomically."""
        table = Path(self.metrics_file_path)
        _, rows = read_table(table)
        _write(table, fieldnames, rows)


def loggers(
    folder: Path, others: Logger | list[Logger] | bool | None, evaluated: WeightsOrigin | None = None
) -> list[Logger]:
    """Return CSV and TensorBoard loggers of a folder, followed by the user's.

    Args:
        folder: Folder of the training or evaluation.
        others: Loggers of the user; false disables all.
        evaluated: Origin of the evaluated weights; an evaluation appends to the rows of earlier ones.
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


def check_installed(configured: Any) -> None:
    """Check that the package of every logger is installed.

    Args:
        configured: Value of `--trainer.logger`: one or several objects with a `class_path`, or None.

    Raises:
        ValueError: A package is missing.
    """
    for logger in configured if isinstance(configured, list) else [configured]:
        name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        if name in EXTRAS and find_spec(EXTRAS[name]) is None:
            raise ValueError(
                f"--trainer.logger {name} needs the package {EXTRAS[name]}, which is not installed. "
                f"Run `pip install 'lightning-paf[{EXTRAS[name]}]'`, or omit the logger."
            )


def log_config(loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
    """Log the configuration to new runs of services, on the first rank.

    Options that a resume changes are left out, since MLflow refuses changed parameters.
    """
    kept = {key: value for key, value in config.items() if key not in ("ckpt_path", "config", "run")}
    for logger in loggers:
        if is_service(logger):
            logger.log_hyperparams(kept)


def _write(table: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write all rows atomically."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(table, lines.getvalue().encode())


@contextlib.contextmanager
def _explained(folder: str) -> Iterator[None]:
    """Add the command to resume to errors of the file system."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            raise
        raise OSError(
            f"Metrics could not be written to {folder} ({reason}); checkpoints are unchanged. "
            "Free disk space and resume with --ckpt_path auto."
        ) from error
