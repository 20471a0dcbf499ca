"""A training that is told to stop leaves a checkpoint, and an exit status that asks for a restart."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

EXIT_STATUS = 75
"""EX_TEMPFAIL of `sysexits.h`: nothing is wrong, try again later."""
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopOnSignal(Callback):
    """At SIGTERM or SIGUSR1, finishes the batch, saves `checkpoints/stopped.ckpt`, and exits with `EXIT_STATUS`.

    The signal may reach one rank, some or all: all agree at the end of each batch of training and validation.
    Lightning's own handlers, which this replaces, communicate from inside the handler, in the middle of whatever
    the ranks do. A test stops at once: its state holds all records.
    """

    def __init__(self) -> None:
        self._received: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning from requeueing SLURM jobs from inside its handler: that is what the exit status is for."""
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen before loaders start their processes: they inherit it, and SIGUSR1 would end those that do not."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; the trainer puts back what was there before when it ends."""
        self._listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, unless gradients are being accumulated: a checkpoint holds none."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self._stop_if_told(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop; the resumed training begins the validation anew."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_if_told(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; Lightning would go on to the end, since it looks at signals after training batches only."""
        self._listen(_stop)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save no more: a process that waits to learn why it has lost the others is in the way of a new start."""
        if not isinstance(exception, SystemExit):
            self._listen(signal.SIG_DFL)

    def _listen(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers | None = None) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._note if handler is None else handler)
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # what has waited since the start of the program

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def _stop_if_told(self, trainer: Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            return
        path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "stopped.ckpt"
        trainer.save_checkpoint(path)
        rank_zero_info(f"Told to stop: {path} holds step {trainer.global_step}. Continue with --ckpt_path auto.")
        raise SystemExit(EXIT_STATUS)


def _stop(number: int, frame: FrameType | None) -> None:
    rank_zero_info("Told to stop. Give the same command again: what the state holds is not evaluated again.")
    raise SystemExit(EXIT_STATUS)
