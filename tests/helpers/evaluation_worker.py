"""An evaluation small enough to be run often, and processes that work on it."""

import multiprocessing
import os
import time
from pathlib import Path

import torch
from torch import nn

from helpers.fakes import images
from helpers.processes import processes
from lightning_paf.attacks import PGD, Attack, WorstOf
from lightning_paf.evaluation.evaluate import Judgement, judge
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.state import Ledger
from lightning_paf.utils import process as process_file

BLOCK_SIZE = 4
BLOCKS = 6
RECORDS = BLOCKS * 3


class SlowPGD(PGD):
    """Takes its time, so that it can be interrupted."""

    pause = 0.0

    def perturb(self, forward, x, y, loss):
        if self.pause:
            time.sleep(self.pause)
        return super().perturb(forward, x, y, loss)


def attack(eps: float = 0.1, pause: float = 0.0) -> Attack:
    weak, strong = SlowPGD(eps / 2, step_size=eps / 4, steps=2), SlowPGD(eps, step_size=eps / 4, steps=5)
    weak.pause = strong.pause = pause
    return WorstOf([weak, strong])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 3))


def samples(n: int = BLOCK_SIZE * BLOCKS - 1) -> Samples:
    """The label is what the model says, but for every fifth; the last block is not full."""
    x, _ = images(n, channels=1, size=4)
    with torch.no_grad():
        y = model()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    return Samples.of(x, y)


def work(
    folder: Path,
    pause: float = 0.0,
    timeout: float = 120.0,
    stop=None,
    told: Path | None = None,
    hours: float = 0.0,
) -> Judgement:
    torch.set_num_threads(1)
    if hours:
        _set_clock(hours)

    def tell(line: str) -> None:
        if told is not None:
            with told.open("a") as stream:
                print(line, file=stream, flush=True)

    ledger = Ledger(folder, timeout)
    return judge(
        model(), attack(pause=pause), samples(), ledger, seed=3, block_size=BLOCK_SIZE, stop=stop, progress=tell
    )


def start(*arguments) -> multiprocessing.Process:
    """Another process that does `work`."""
    process = processes().Process(target=work, args=arguments)
    process.start()
    return process


def _set_clock(hours: float) -> None:
    """Make this process one of a machine of its own, whose clock is so many hours ahead, also for times of files."""
    now, utime = time.time, os.utime
    time.time = lambda: now() + 3600 * hours
    os.utime = lambda path: utime(path, (time.time(), time.time()))
    process_file.this_system = lambda: f"a machine {hours} hours ahead"
