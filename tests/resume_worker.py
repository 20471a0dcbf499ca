"""Callbacks for tests of runs that are stopped: they save at every step, or stop the process."""

import os
import signal

from lightning.pytorch import Callback


class Saver(Callback):
    """Saves after every step as `step{n}.ckpt`, and at the end of every epoch as `epoch{n}.ckpt`."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(f"{trainer.log_dir}/checkpoints/step{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(f"{trainer.log_dir}/checkpoints/epoch{trainer.current_epoch}.ckpt")


class KilledAt(Callback):
    """Kills the process before a step, in the way that cannot be caught."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class FailsAt(Callback):
    """Raises an error before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError(f"stopped before step {self.step}")
