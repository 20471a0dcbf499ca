"""Commands run by two processes, what they look at, and ways for one of them to fail.

As a script: `python ddp_worker.py JOBS.json`, a list of command lines. Lightning's `strategy=ddp` starts the second
process with the same words, so both go through the list side by side.
"""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback

from lightning_paf.cli import train
from lightning_paf.evaluation import EvaluationResult
from lightning_paf.objectives import Natural


class Recorder(Callback):
    """Saves to the run folder what one process has seen, as `seen_rank{r}.pt`."""

    def on_fit_start(self, trainer, pl_module):
        self.folder = Path(trainer.log_dir)
        self.seen = {"images": [], "noise": [], "gradients": [], "weights": [], "start": _copy(pl_module)}
        self.seen["validation_batches"] = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen["images"].append(batch[0].clone())
        with torch.random.fork_rng([]):  # the numbers that the attack is about to draw
            self.seen["noise"].append(torch.rand(8))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen["gradients"].append({name: p.grad.clone() for name, p in pl_module.named_parameters()})

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen["weights"].append(_copy(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, *args):
        self.seen["validation_batches"] += 1
        self.seen["validated"] = _copy(pl_module)  # with averaging, the average

    def on_fit_end(self, trainer, pl_module):
        self.seen["metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save(self.seen, self.folder / f"seen_rank{trainer.global_rank}.pt")


class NaNOnTheSecondRank(Natural):
    """A loss that breaks on rank 1 at its second step."""

    steps = 0

    def forward(self, model, x, y, attack):
        result = super().forward(model, x, y, attack)
        self.steps += 1
        if self.steps == 2 and torch.distributed.get_rank() == 1:
            result.loss.data.fill_(torch.nan)
        return result


def _copy(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _tell_who_saves(log):
    save = EvaluationResult.save

    def announced(self, path):
        with log.open("a") as stream:
            print(torch.distributed.get_rank(), path.name, file=stream)
        save(self, path)

    EvaluationResult.save = announced


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    _tell_who_saves(jobs.with_suffix(".saved"))
    for words in json.loads(jobs.read_text()):
        train(words)
