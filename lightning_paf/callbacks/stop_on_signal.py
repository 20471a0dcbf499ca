"""Checkpoint and exit status of a training that a signal stops."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import dataloader, get_worker_info

from lightning_paf.runs.folder import run_folder_of
from lightning_paf.utils.process import EXIT_STATUS

PATIENCE = 10
"""Seconds from a signal to the end of a wait for data."""
_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_Handler = Callable[[int, FrameType | None], None] | signal.Handlers


class StopOnSignal(Callback):
    """Checkpoint and exit status of a training that a signal stops.

    At SIGTERM, SIGUSR1, SIGHUP or Ctrl-C, the training finishes the current batch, saves `checkpoints/stopped.ckpt` and
    exits with `EXIT_STATUS`. A second Ctrl-C ends the process at once. The signal can reach one rank, some or all: the
    ranks agree at the end of each training and validation batch. This replaces Lightning's handlers, which communicate
    from inside the handler, at any point of a step. A test stops immediately, since its state on disk holds all results
    so far. Signals that the parent process ignores, as with `nohup`, stay ignored.

    A training that waits for data `PATIENCE` seconds after a signal exits without a checkpoint.

    After any other exception on the first rank, the ranks that Lightning has started are killed, since they could wait
    in a collective operation until the time-out of the process group.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._gave_up = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Disable Lightning's requeueing of SLURM jobs inside its signal handler.

        The exit status serves that purpose.
        """
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers, before data loaders start processes.

        The trainer restores the previous handlers at the end.
        """
        _handle(self._record)

    on_sanity_check_start = on_train_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, unless gradients are being accumulated, which checkpoints lack."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self._stop_if_signalled(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop; the resumed training restarts the validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_if_signalled(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install a handler that exits immediately.

        Lightning checks for signals after training batches only.
        """
        _handle(_exit)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the time limit of a signal."""
        _alarm(0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the checkpoint of an earlier stop once another one replaces it."""
        path = _stopped(trainer)  # a broadcast: on all ranks
        saved = getattr(trainer.strategy.checkpoint_io, "last_saved", None)
        if saved is not None and saved[1] == trainer.global_step:
            trainer.strategy.remove_checkpoint(path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the default handlers, and kill the ranks that Lightning has started."""
        _alarm(0)
        if isinstance(exception, SystemExit) and not self._gave_up:
            return
        _handle(signal.SIG_DFL)
        for process in getattr(trainer.strategy.launcher, "procs", []):
            process.kill()

    def _record(self, number: int, frame: FrameType | None) -> None:
        if get_worker_info() is not None:  # loader processes inherit the handler
            return
        self._received = number
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, self._end_wait)
        _alarm(PATIENCE)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            rank_zero_info("Stopping after this batch. Press Ctrl-C again to end at once, without a checkpoint.")

    def _end_wait(self, number: int, frame: FrameType | None) -> None:
        if not _waits_for_data(frame):
            _alarm(PATIENCE)
            return
        rank_zero_info(
            f"Stopped by a signal, after {PATIENCE} s without data and without a new checkpoint. Resume with "
            "--ckpt_path auto."
        )
        self._gave_up = True
        raise SystemExit(EXIT_STATUS)

    def _stop_if_signalled(self, trainer: Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            return
        _alarm(0)
        path = _stopped(trainer)
        trainer.save_checkpoint(path)
        rank_zero_info(f"Stopped by a signal: {path} holds step {trainer.global_step}. Resume with --ckpt_path auto.")
        # Lightning's launcher kills the first rank if another one exits with an error.
        started = isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
        raise SystemExit(0 if started and trainer.local_rank else EXIT_STATUS)


def _stopped(trainer: Trainer) -> Path:
    return run_folder_of(trainer) / "checkpoints" / "stopped.ckpt"


def _handle(handler: _Handler) -> None:
    """Install a handler for all signals that are not ignored, and unblock them."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # blocked by `__main__`


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _waits_for_data(frame: FrameType | None) -> bool:
    """Return whether this frame or a calling one waits for a data loader."""
    while frame is not None and frame.f_code.co_filename != dataloader.__file__:
        frame = frame.f_back
    return frame is not None


def _exit(number: int, frame: FrameType | None) -> None:
    rank_zero_info("Stopped by a signal. Repeat the command to resume: recorded results are kept.")
    raise SystemExit(EXIT_STATUS)
