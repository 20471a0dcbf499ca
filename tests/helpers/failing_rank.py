"""`failing_rank.py RANK raises|killed`: train on two ranks; one fails while the other sleeps."""

import os
import signal
import sys
import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_paf.callbacks.stop_on_signal import StopOnSignal


class Failing(Callback):
    """Fails on one rank after the first step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rank, failure = int(sys.argv[1]), sys.argv[2]
        if trainer.global_rank != rank:
            print("sleeps", flush=True)
            time.sleep(10_000)
        time.sleep(1)
        if failure == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("fails")


class Line(LightningModule):
    """A network of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, callbacks=[StopOnSignal(), Failing()], **quiet
    )
    trainer.fit(Line(), DataLoader(torch.ones(8, 1)))
