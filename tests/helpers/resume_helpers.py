"""Callbacks and loggers that save, stop or record a training, and comparisons of run folders."""

import csv
import os
import signal as signals
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from lightning_paf.runs.progress import FILE, Progress


def at_step(callback: str, step: int, **options: object) -> list[str]:
    """Return the words that add a callback of this module, with its options."""
    words = [f"--trainer.callbacks+=helpers.resume_helpers.{callback}"]
    for name, value in {"step": step, **options}.items():
        words += [f"--trainer.callbacks.{name}", str(value)]
    return words


class Saver(Callback):
    """Saves after every step as `step{n}.ckpt`, and at the end of every epoch as `epoch{n}.ckpt`."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(f"{trainer.log_dir}/saved/step{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(f"{trainer.log_dir}/saved/epoch{trainer.current_epoch}.ckpt")


class RateRecorder(Callback):
    """Keeps the learning rate of every step."""

    rates: list[float] = []  # noqa: RUF012  # shared by all instances

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class AtStep(Callback):
    """Acts before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.act(trainer)

    def act(self, trainer) -> None:
        raise RuntimeError(f"stopped before step {self.step}")


class FailsAt(AtStep):
    """Raises an error before a step."""


class KilledAt(AtStep):
    """Kills the process before a step with SIGKILL."""

    def act(self, trainer):
        os.kill(os.getpid(), signals.SIGKILL)


class SignalledAt(AtStep):
    """Sends a signal to the process of the last rank, before a step or in the validation after it."""

    def __init__(self, step: int, signal: str = "SIGTERM", validating: bool = False) -> None:
        super().__init__(step)
        self.number = getattr(signals, signal)
        self.validating = validating

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.validating and trainer.global_step == self.step and not trainer.sanity_checking:
            self.send(trainer)

    def act(self, trainer):
        if not self.validating:
            self.send(trainer)

    def send(self, trainer):
        if trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), self.number)


class WaitsAt(AtStep):
    """Creates a file `waits` in a folder before a step, and waits until there is a file `go`."""

    def __init__(self, step: int, folder: str) -> None:
        super().__init__(step)
        self.folder = Path(folder)

    def act(self, trainer):
        (self.folder / "waits").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)


class RecordingLogger(Logger):
    """Records metrics and hyper-parameters, which a logger with a server would send."""

    logged: dict[str, list] = {"runs": [], "hyperparams": [], "metrics": []}  # noqa: RUF012  # shared by all instances

    def __init__(self, project: str = "none", id: str | None = None, save_dir: str = ".") -> None:
        super().__init__()
        self.project, self.id = project, id or uuid.uuid4().hex
        self.logged["runs"].append((self.id, save_dir))

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.id

    def log_hyperparams(self, params, *args, **kwargs):
        self.logged["hyperparams"].append(params)

    def log_metrics(self, metrics, step=None):
        self.logged["metrics"].append((step, dict(metrics)))


class ProgressReader(Callback):
    """Waits before the third step until `progress.json` has the second, and keeps its content."""

    seen: Progress | None = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for _ in range(6000 * (trainer.global_step == 2)):
            ProgressReader.seen = Progress.read(Path(trainer.log_dir) / FILE)
            if ProgressReader.seen is not None and ProgressReader.seen.step == 2:
                break
            time.sleep(0.01)


class NumpyState(Callback):
    """Has a state of numpy numbers."""

    def __init__(self) -> None:
        self.best = np.float64(0.0)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.best = max(self.best, np.float64(trainer.global_step))

    def state_dict(self):
        return {"best": self.best, "steps": np.int64(3)}

    def load_state_dict(self, state_dict):
        self.best = state_dict["best"]


class PathState(Callback):
    """Has a state that `weights_only` rejects."""

    def state_dict(self):
        return {"where": Path("here")}


def last(run: Path) -> dict[str, Any]:
    """Return the last checkpoint of a run, `settled`."""
    return settled(run / "checkpoints" / "last.ckpt")


def settled(path: Path) -> dict[str, Any]:
    """Return a checkpoint without names of files and run, and without the total number of validation batches.

    A restarted validation counts its first batch twice, which has no effect.
    """
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["lightning_paf"]["run"]
    del checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    checkpoint["callbacks"] = {key: value for key, value in checkpoint["callbacks"].items() if "Checkpoint" not in key}
    return checkpoint


def rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of `metrics.csv` without empty cells, and without those of speed and memory."""
    with (run / "metrics.csv").open(newline="") as lines:
        found = [{key: value for key, value in row.items() if value} for row in csv.DictReader(lines)]
    return [row for row in found if not any(key.startswith("run/") for key in row)]


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Return the keys at which two checkpoints differ; tensors are compared bit by bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        missing = [f"{where}/{key}" for key in ours.keys() ^ theirs.keys()]
        return missing + [
            d for key in ours.keys() & theirs.keys() for d in differences(ours[key], theirs[key], f"{where}/{key}")
        ]
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        return [d for i, pair in enumerate(zip(ours, theirs, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [where]
    return [] if ours == theirs else [where]


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, and the target of every link."""
    return {
        str(path.relative_to(folder)): bytes(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }
