"""A sign of life in the run folder."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_paf.callbacks.throughput import PREFIX, Throughput
from lightning_paf.runs.progress import BEAT, FILE, Progress, State
from lightning_paf.utils.process import Process


class ProgressFile(Callback):
    """Keeps `progress.json` in the run folder up to date, for `lightning-paf status`.

    A thread of the first process writes it every few seconds, also in a long validation, with what the steps have left
    in memory: no step waits for the disk. A training that ends says how.

    Args:
        throughput: Knows how fast the training is.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self._state: State = "training"
        self._step, self._stepped = 0, 0.0
        self._epoch = 0
        self._epochs: int | None = None
        self._error = ""
        self._saved: bool | None = None
        self._path = Path()
        self._checkpoint_io: Any = None
        self._over: threading.Event | None = None  # made where training begins: it cannot be sent to a new process
        self._writer: threading.Thread | None = None

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; a resumed training knows its step now."""
        self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, where nothing was checked before."""
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the step."""
        self._note(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No step for a while."""
        self._state = "validating"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps again."""
        self._state = "training"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it is done."""
        self._note(trainer)
        self._end("finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say why it ends."""
        if isinstance(exception, Exception):
            self._error = f"{type(exception).__name__}: {exception}"
        self._note(trainer)  # what stops a training may do so before this callback has heard of the step
        self._end("failed" if isinstance(exception, Exception) else "stopped")

    def _begin(self, trainer: Trainer) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # agreed upon among the processes
        self._note(trainer)
        if self._over is not None or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._error = folder / FILE, ""
        self._checkpoint_io = trainer.strategy.checkpoint_io
        self._epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._keep_writing, args=(self._over,), name=FILE, daemon=True)
        self._writer.start()

    def _note(self, trainer: Trainer) -> None:
        self._step, self._epoch, self._stepped = trainer.global_step, trainer.current_epoch, time.monotonic()
        has_saved = getattr(trainer.strategy.checkpoint_io, "has_saved", None)
        self._saved = trainer.ckpt_path is not None or has_saved

    def _end(self, state: State) -> None:
        if self._over is None or self._writer is None:
            return
        self._state = state
        self._over.set()
        self._writer.join(timeout=BEAT)  # a network folder that is away must not keep the process
        self._over = self._writer = None

    def _keep_writing(self, over: threading.Event) -> None:
        ends = False
        while not ends:
            ends = over.is_set()
            with contextlib.suppress(OSError):  # a network folder may be away for a moment
                if check_owner := getattr(self._checkpoint_io, "check_owner", None):
                    check_owner()
                self._progress().write(self._path)
            over.wait(0 if ends else BEAT)

    def _progress(self) -> Progress:
        return Progress(
            Process.this(),
            self._state,
            self._step,
            self.throughput.steps,
            self._epoch,
            self._epochs,
            self.throughput.seconds_per_step(self._step),
            self.throughput.latest.get(f"{PREFIX}images_per_second"),
            time.monotonic() - self._stepped,
            self._error,
            self._saved,
        )
