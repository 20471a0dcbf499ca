"""Progress and heartbeat of a training, written to its run folder."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_paf.callbacks.throughput import PREFIX, Throughput
from lightning_paf.runs.checkpoints import AtomicCheckpointIO
from lightning_paf.runs.folder import run_folder_of
from lightning_paf.runs.progress import BEAT, FILE, Progress, State
from lightning_paf.utils.process import Process


class RunHeartbeat(Callback):
    """Writer of `progress.json` in the run folder, for `lightning-paf status`.

    A thread of the first process writes it every few seconds, also during a long validation, so that no step waits for
    the disk. The last write records how the training ended.

    Args:
        throughput: Source of the speed.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self._state: State = "training"
        self._step, self._stepped, self._epoch = 0, 0.0, 0
        self._error = ""
        self._checkpoint: tuple[str | None, int | None] = (None, None)
        self._path = Path()
        self._over: threading.Event | None = None  # created at the start: it cannot be pickled
        self._writer: threading.Thread | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the thread, unless the sanity check has started it.

        The step of a resumed training is known in both.
        """
        self._start(trainer)

    on_sanity_check_start = on_train_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step."""
        self._record(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the state."""
        self._state = "validating"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the state."""
        self._state = "training"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that the training has finished, and why if it ended early."""
        self._record(trainer)
        if self._step < (self.throughput.steps or 0):
            reasons = (callback.stopping_reason_message for callback in trainer.early_stopping_callbacks)
            self._error = next(filter(None, reasons), "ended early by a callback or a time limit")
        self._end("finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record the reason of the end."""
        if isinstance(exception, Exception):
            self._error = f"{type(exception).__name__}: {exception}"
        self._record(trainer)  # an exception can precede `on_train_batch_end` of this callback
        self._end("failed" if isinstance(exception, Exception) else "stopped")

    def _start(self, trainer: Trainer) -> None:
        folder = run_folder_of(trainer)  # on all ranks
        self._record(trainer)
        if self._over is not None or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._error = folder / FILE, ""
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._keep_writing, args=(trainer, self._over), name=FILE, daemon=True)
        self._writer.start()

    def _record(self, trainer: Trainer) -> None:
        checkpoint_io = trainer.strategy.checkpoint_io
        if isinstance(checkpoint_io, AtomicCheckpointIO):
            self._checkpoint = checkpoint_io.last_saved or self._checkpoint
            if self._checkpoint[0] is None:
                path = trainer.ckpt_path
                self._checkpoint = ("", None) if path is None else (Path(path).name, trainer.global_step)
        self._step, self._epoch, self._stepped = trainer.global_step, trainer.current_epoch, time.monotonic()

    def _end(self, state: State) -> None:
        if self._over is None or self._writer is None:
            return
        self._state = state
        self._over.set()
        self._writer.join(timeout=BEAT)  # a network folder can be unavailable
        self._over = self._writer = None

    def _keep_writing(self, trainer: Trainer, over: threading.Event) -> None:
        check_owner = getattr(trainer.strategy.checkpoint_io, "check_owner", lambda: None)
        epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
        last = False
        while not last:
            last = over.is_set()
            with contextlib.suppress(OSError):  # a network folder can be unavailable for a moment
                check_owner()
                self._progress(epochs).write(self._path)
            over.wait(0 if last else BEAT)

    def _progress(self, epochs: int | None) -> Progress:
        return Progress(
            Process.this(),
            self._state,
            self._step,
            self.throughput.steps,
            self._epoch,
            epochs,
            self.throughput.seconds_per_step(self._step),
            self.throughput.latest.get(f"{PREFIX}images_per_second"),
            time.monotonic() - self._stepped,
            self._error,
            *self._checkpoint,
        )
