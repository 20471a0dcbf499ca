"""Commands run by several processes, what they look at, and ways for one of them to fail."""

import os
import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback

from helpers.cli_runs import status
from lightning_paf.attacks import PGD
from lightning_paf.evaluation import EvaluationResult
from lightning_paf.objectives import Natural


class Recorder(Callback):
    """Saves to the run folder what one process has seen, as `seen_rank{r}.pt`."""

    def on_fit_start(self, trainer, pl_module):
        self.folder = Path(trainer.log_dir)
        self.seen = {"images": [], "noise": [], "gradients": [], "weights": [], "start": _copy(pl_module)}
        self.seen |= {"validation_batches": 0, "collectives": []}
        attack = pl_module.attack
        attack.perturb = partial(self.counted, attack.perturb)

    def counted(self, perturb, *args):
        """Calls an attack, and counts the collective operations in it."""
        begun = _collectives()
        try:
            return perturb(*args)
        finally:
            self.seen["collectives"].append(_collectives() - begun)

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
        del pl_module.attack.perturb  # the one of this object
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


class SlowOnTheLastRank(PGD):
    """Takes one rank much longer than another one."""

    def perturb(self, forward, x, y, loss):
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            time.sleep(8)
        return super().perturb(forward, x, y, loss)


class Impatient(Callback):
    """Gives collective operations 4 s while models are judged."""

    def on_validation_start(self, trainer, pl_module):
        torch.distributed.set_timeout(timedelta(seconds=4))

    def on_validation_end(self, trainer, pl_module):
        torch.distributed.set_timeout(timedelta(minutes=30))

    on_test_start, on_test_end = on_validation_start, on_validation_end


class KilledOnce(Callback):
    """Kills the last rank before a step, unless that has happened already."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        marker = Path(trainer.log_dir) / "killed"
        torch.distributed.barrier()
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def run_all(commands, log):
    """Runs commands one after the other, checks their exit statuses, and logs which rank saves results."""
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
    """Without generating code, which takes long."""
    return compile(*args, **{**options, "backend": "eager"})


def _copy(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _collectives():
    """How many this process has taken part in."""
    several = torch.distributed.is_initialized()
    return torch.distributed.group.WORLD._get_sequence_number_for_group() if several else 0
