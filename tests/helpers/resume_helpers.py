"""Callbacks and loggers that save, stop or record a training, and comparisons of run folders."""

import csv
import os
import signal as signals
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from lightning_paf.runs.progress import FILE, Progress


class Saver(Callback):
    """Saves after every step as `step{n}.ckpt`, and at the end of every epoch as `epoch{n}.ckpt`."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(f"{trainer.log_dir}/saved/step{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(f"{trainer.log_dir}/saved/epoch{trainer.current_epoch}.ckpt")


class KilledAt(Callback):
    """Kills the process before a step, in the way that cannot be caught."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signals.SIGKILL)


class SignalledAt(Callback):
    """Sends a signal to its process, before a step or in the validation after it; to one rank if there are several."""

    def __init__(self, step: int, signal: str = "SIGTERM", validating: bool = False) -> None:
        self.step = step
        self.number = getattr(signals, signal)
        self.validating = validating

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.validating:
            self._send(trainer)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.validating and not trainer.sanity_checking:
            self._send(trainer)

    def _send(self, trainer):
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), self.number)


class FailsAt(Callback):
    """Raises an error before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError(f"stopped before step {self.step}")


class RecordingLogger(Logger):
    """Records metrics and hyper-parameters, as a logger with a server would send them."""

    logged: dict[str, list] = {"hyperparams": [], "metrics": []}  # noqa: RUF012  # shared by all instances

    def __init__(self, project: str = "none") -> None:
        super().__init__()
        self.project = project

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return "0"

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


def last(run: Path) -> dict[str, Any]:
    """The last checkpoint of a run, `settled`."""
    return settled(run / "checkpoints" / "last.ckpt")


def settled(path: Path) -> dict[str, Any]:
    """A checkpoint without where its run has put which file, and how many batches were validated in total.

    A validation that is begun anew counts its first batch twice, and nothing depends on that.
    """
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    checkpoint["callbacks"] = {key: value for key, value in checkpoint["callbacks"].items() if "Checkpoint" not in key}
    return checkpoint


def rows(run: Path) -> list[dict[str, str]]:
    """Lines of `metrics.csv`, each without empty cells; those about speed and memory are left out."""
    with (run / "metrics.csv").open(newline="") as lines:
        found = [{key: value for key, value in row.items() if value} for row in csv.DictReader(lines)]
    return [row for row in found if not any(key.startswith("run/") for key in row)]


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ; tensors are compared bit by bit."""
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


class WaitsAt(Callback):
    """Waits before a step until a file `go` exists in a folder, where it has put a file `waits`."""

    def __init__(self, step: int, folder: str) -> None:
        self.step = step
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            (self.folder / "waits").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.01)


class Remembers(Callback):
    """Has a state of ordinary numpy numbers."""

    def __init__(self) -> None:
        self.best = np.float64(0.0)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.best = max(self.best, np.float64(trainer.global_step))

    def state_dict(self):
        return {"best": self.best, "steps": np.int64(3)}

    def load_state_dict(self, state_dict):
        self.best = state_dict["best"]


class RemembersAPath(Callback):
    """Has a state that `weights_only` refuses."""

    def state_dict(self):
        return {"where": Path("here")}


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, and where every link leads."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }
