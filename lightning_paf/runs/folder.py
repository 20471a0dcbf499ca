"""Run folder: saved configuration, and the checkpoint to resume from."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_paf import __version__
from lightning_paf.runs.checkpoints import (
    AtomicCheckpointIO,
    checkpoint_files,
    newest_checkpoint,
    position_of,
    run_id_of,
    step_of,
)
from lightning_paf.runs.config_file import is_saved
from lightning_paf.runs.identity import RUN, read_identity, write_identity
from lightning_paf.runs.lock import locked
from lightning_paf.runs.loggers import RunMetrics, log_config
from lightning_paf.runs.progress import FILE, Progress
from lightning_paf.runs.resume_check import CONFIG, changed_options
from lightning_paf.runs.shared_folder import check_shared
from lightning_paf.utils.files import explained, write_whole

NEWEST = ("auto", "last")
"""Values of `--ckpt_path` for the newest valid checkpoint of the run folder.

Without a checkpoint, a new training starts.
"""
_SECONDS = 30.0
"""Time limit for a new file to appear on other machines (network file systems)."""


class RunFolder(SaveConfigCallback):
    """Callback that saves the merged configuration of `fit` in the run folder.

    Other commands do not change it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the folder on all ranks before anything is written to it."""
        folder = _folder(trainer)
        check_shared(trainer, folder, self.config.get("ckpt_path") if stage == "fit" else None, _SECONDS)
        if stage == "fit" and trainer.is_global_zero and not self.overwrite and _traces(trainer, folder):
            raise _occupied(folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration, without `ckpt_path`, once the checkpoint is loaded."""
        if not trainer.is_global_zero:
            return
        folder = _folder(trainer)
        self.config.pop("ckpt_path", None)
        text = self.parser.dump(self.config, skip_unset=False, skip_validation=True)  # the parser has validated it
        with explained(folder, "a run folder"):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / CONFIG, f"# lightning_paf=={__version__}\n{text}".encode())
        identity, checkpoint = read_identity(folder), trainer.ckpt_path and str(trainer.ckpt_path)
        log_config(
            [logger for logger in trainer.loggers if type(logger).__name__ not in identity], yaml.safe_load(text)
        )
        resumed = run_id_of(checkpoint) if checkpoint and _resumes(folder, checkpoint) else None
        run_id = identity.get(RUN) or resumed or uuid.uuid4().hex
        if isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            trainer.strategy.checkpoint_io.run_id = run_id
        with explained(folder, "a run folder"):
            write_identity(folder, run_id, trainer.loggers)


def run_folder_of(trainer: Trainer) -> Path:
    """Return the run folder, that of the first rank; a collective operation."""
    return Path(trainer.log_dir or trainer.default_root_dir)


@contextlib.contextmanager
def held_run_folder(trainer: Trainer, run: Path | None) -> Iterator[None]:
    """Lock the folder of `--run` on the first rank.

    Without `--run`, Lightning creates a new folder, which needs no lock.

    Raises:
        ValueError: Another training is running in the folder.
    """
    if run is None or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
        yield
        return
    candidates = (trainer.strategy.checkpoint_io, *trainer.loggers)
    writers = [writer for writer in candidates if isinstance(writer, AtomicCheckpointIO | RunMetrics)]
    takeover = list[str]()
    with locked(Path(run), takeover.append) as check_owner:
        for writer in writers:
            writer.check_owner = check_owner
            if isinstance(writer, RunMetrics):
                writer.takeover = takeover
        try:
            yield
        finally:
            for writer in writers:
                del writer.check_owner


def enter_run_folder(trainer: Trainer, checkpoint: str | None, config: Mapping[str, Any]) -> str | None:
    """Find the checkpoint to resume from, before the loggers open the run folder.

    Warns of every changed option that can change the results of the run.

    Args:
        trainer: Trainer of the training.
        checkpoint: Value of `--ckpt_path`: a file, one of `NEWEST`, or None.
        config: The merged configuration, as plain values.

    Returns:
        The checkpoint; None starts a new training.

    Raises:
        ValueError: The folder holds another run; the checkpoint was written by a newer version of the package, or is
            the end of the training, so that changed options would be recorded but not applied.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        if checkpoint not in NEWEST:
            return checkpoint
        rank_zero_info("fast_dev_run starts a new training and neither reads nor writes the run folder.")
        return None
    folder = _folder(trainer)
    if checkpoint in NEWEST:
        checkpoint = _newest(trainer, folder)
    elif not _resumes(folder, checkpoint) and _traces(trainer, folder):
        raise _occupied(folder)
    resumes, saved = _resumes(folder, checkpoint), folder / CONFIG
    if not resumes and os.path.lexists(saved) and not is_saved(saved):
        raise ValueError(
            f"A run folder must hold no config.yaml that `fit` did not write, got {saved}, which this training would "
            "replace. Rename it, or pass another --run."
        )
    changes = changed_options(folder, config) if resumes else []
    if checkpoint is not None and (changes or not resumes):
        _check_steps_left(trainer, checkpoint)
    for change in changes:
        rank_zero_warn(f"An option of the run in {folder} has changed: {change}.")
    if checkpoint is not None and trainer.overfit_batches:  # type: ignore[attr-defined]
        rank_zero_warn(
            "With trainer.overfit_batches, checkpoints lack the position in the data: the current epoch restarts with "
            "its first batches."
        )
    for logger in trainer.loggers:
        if isinstance(logger, RunMetrics):
            for line in logger.takeover:
                rank_zero_info(line)
            logger.resumed_step = 0 if checkpoint is None else step_of(checkpoint)
    return checkpoint


def is_finished(trainer: Trainer, checkpoint: str | None, config: Mapping[str, Any]) -> bool:
    """Return whether `auto` names a run finished with the same options, and log it.

    Otherwise, a training ended by early stopping would train one more epoch at every start.
    """
    folder = _folder(trainer)
    progress = Progress.read(folder / FILE)
    if checkpoint not in NEWEST or trainer.fast_dev_run or progress is None or progress.state != "finished":  # type: ignore[attr-defined]
        return False
    newest = newest_checkpoint(_checkpoint_folders(trainer, folder), read_identity(folder).get(RUN))
    if newest is None or step_of(newest) < progress.step or changed_options(folder, config):
        return False
    rank_zero_info(f"The run in {folder} has finished at step {progress.step}. Pass other options to continue it.")
    return True


def check_writable(folder: Path) -> None:
    """Check that a run folder can be written to or created.

    Raises:
        ValueError: The folder, or the one to create it in, is read-only or not a folder.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise ValueError(
            f"A run folder must be writable, but {existing} is read-only or not a folder. "
            "Pass --run with a folder that can be written or created."
        )


def _traces(trainer: Trainer, folder: Path) -> str:
    """List the files that a new training would replace; empty if there are none."""
    files = checkpoint_files(_checkpoint_folders(trainer, folder))
    table = folder / "metrics.csv"
    with explained(table, "the metrics of a run"):
        rows = len(table.read_bytes().splitlines()) - 1 if os.path.lexists(table) else 0
    progress = Progress.read(folder / FILE)
    steps = progress.step if progress is not None else 0
    found = [
        *map(str, files),
        *[f"{table} with {rows} rows"] * (rows > 0),
        *[f"{folder / FILE} at step {steps}"] * (steps > 0),
    ]
    return ", ".join(found)


def _occupied(folder: Path) -> ValueError:
    return ValueError(
        f"A run folder must hold one run, but {folder} already holds one. "
        "Pass another --run, or --ckpt_path auto to resume it."
    )


def _folder(trainer: Trainer) -> Path:
    """Return the run folder of this rank; `trainer.log_dir` is that of the first rank."""
    for logger in trainer.loggers:
        if isinstance(logger, RunMetrics):
            return Path(logger.log_dir)
    return Path(trainer.log_dir or ".")


def _newest(trainer: Trainer, folder: Path) -> str | None:
    """Find and log the newest checkpoint.

    Raises:
        ValueError: There is a run, but no checkpoint to resume from.
    """
    newest = newest_checkpoint(_checkpoint_folders(trainer, folder), read_identity(folder).get(RUN))
    if newest is not None:
        rank_zero_info(f"Resuming from {newest}, step {step_of(newest)}.")
        return str(newest)
    traces, progress = _traces(trainer, folder), Progress.read(folder / FILE)
    ended_early = progress is not None and progress.checkpoint == "" and progress.state != "finished"
    if traces and not ended_early:
        raise ValueError(
            f"--ckpt_path auto must find the checkpoints of the run in {folder}, got only {traces}. "
            "Restore them and repeat the command, or pass another --run."
        )
    rank_zero_info(f"{folder} holds no checkpoint: starting a new training.")
    return None


def _check_steps_left(trainer: Trainer, checkpoint: str) -> None:
    steps, epochs = position_of(checkpoint)
    for unit, done, most in (("epochs", epochs, trainer.max_epochs), ("steps", steps, trainer.max_steps)):
        if 0 < (most or -1) <= done:
            raise ValueError(
                f"--trainer.max_{unit} must be larger than the {done} {unit} of {checkpoint}, got {most}. Pass more, "
                "or --model.init instead of --ckpt_path to start a new training with its weights."
            )


def _checkpoint_folders(trainer: Trainer, folder: Path) -> list[Path]:
    chosen = [saver.dirpath for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
    return [folder, folder / "checkpoints", *(Path(path) for path in chosen if path)]


def _resumes(folder: Path, checkpoint: str | None) -> bool:
    """Return whether a training from `checkpoint` resumes the run in its folder."""
    return checkpoint is not None and Path(checkpoint).resolve().is_relative_to(folder.resolve())
