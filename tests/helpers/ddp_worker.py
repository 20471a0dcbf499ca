"""Commands run by several processes, a record of their trainings, and ways for one of them to fail."""

import os
import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.distributed.distributed_c10d import _set_pg_timeout  # public since torch 2.13

from helpers.cli_runs import status
from lightning_paf.attacks import PGD
from lightning_paf.evaluation import EvaluationResult


class Recorder(Callback):
    """Saves images, gradients and weights of one process in the run folder, as `seen_rank{r}.pt`."""

    def on_fit_start(self, trainer, pl_module):
        self.folder = Path(trainer.log_dir)
        self.seen = {"images": [], "noise": [], "gradients": [], "weights": [], "start": _copy(pl_module)}
        self.seen |= {"validation_batches": 0, "collectives": []}
        attack = pl_module.attack
        attack.perturb = partial(self.counted, attack.perturb)

    def counted(self, perturb, *args):
        """Call an attack, and count the collective operations in it."""
        begun = _collectives()
        try:
            return perturb(*args)
        finally:
            self.seen["collectives"].append(_collectives() - begun)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen["images"].append(batch[0].clone())
        with torch.random.fork_rng([]):  # the next numbers that the attack draws
            self.seen["noise"].append(torch.rand(8))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen["gradients"].append({name: p.grad.clone() for name, p in pl_module.named_parameters()})

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen["weights"].append(_copy(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, *args):
        self.seen["validation_batches"] += 1
        self.seen["validated"] = _copy(pl_module)  # with averaging, the average

    def on_fit_end(self, trainer, pl_module):
        del pl_module.attack.perturb  # set in `on_fit_start`
        self.seen["metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save(self.seen, self.folder / f"seen_rank{trainer.global_rank}.pt")


class SlowOnTheLastRank(PGD):
    """PGD that takes the last rank longer than the time-out."""

    def perturb(self, forward, x, y, loss):
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            time.sleep(6)
        return super().perturb(forward, x, y, loss)


class ShortTimeout(Callback):
    """Limits collective operations to 3 s during evaluations."""

    def on_validation_start(self, trainer, pl_module):
        _set_pg_timeout(timedelta(seconds=3))

    def on_validation_end(self, trainer, pl_module):
        _set_pg_timeout(timedelta(minutes=30))

    on_test_start, on_test_end = on_validation_start, on_validation_end


class KilledOnce(Callback):
    """Kills the last rank before a step, once."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        marker = Path(trainer.log_dir) / "killed"
        torch.distributed.barrier()
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def run_all(commands, log):
    """Run commands one after the other, check their exit statuses, and log the ranks that save results."""
    save = EvaluationResult.save

    def announced(self, path):
        with log.open("a") as stream:
            print(torch.distributed.get_rank(), path.name, file=stream)
        save(self, path)

    EvaluationResult.save = announced
    torch.compile = partial(_compile, torch.compile)
    for words, expected in commands:
        found = status(*words)
        expected = expected[int(os.environ["LOCAL_RANK"])] if isinstance(expected, list) else expected
        assert found == expected, f"exit status {found} instead of {expected}: {words}"


def _compile(compile, *args, **options):
    """Compile without generating code, which is slow."""
    return compile(*args, **{**options, "backend": "eager"})


def _copy(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _collectives():
    """Return the number of collective operations of this process."""
    several = torch.distributed.is_initialized()
    return torch.distributed.group.WORLD._get_sequence_number_for_group() if several else 0
