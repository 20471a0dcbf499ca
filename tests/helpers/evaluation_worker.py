"""A small evaluation, and processes that run it."""

import multiprocessing
import os
import time
from pathlib import Path

import torch
from torch import nn

from helpers.fakes import images
from helpers.processes import processes
from lightning_paf.attacks import PGD, Attack, WorstOf
from lightning_paf.evaluation import Evaluation, EvaluationResult, EvaluationState, Samples
from lightning_paf.utils import process as process_file

BLOCK_SIZE = 4
BLOCKS = 6
RECORDS = BLOCKS * 3


class SlowPGD(PGD):
    """PGD with a pause, in which it can be interrupted."""

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
    """Label every sample as the model predicts, except every fifth; the last block is not full."""
    x, _ = images(n, channels=1, size=4)
    with torch.no_grad():
        y = model()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    return Samples.of(x, y)


def evaluation(pause: float = 0.0, **settings) -> Evaluation:
    arguments = {"model": model(), "attack": attack(pause=pause), "samples": samples(), "seed": 3}
    return Evaluation(**{**arguments, "block_size": BLOCK_SIZE, **settings})


def work(
    folder: Path,
    pause: float = 0.0,
    timeout: float = 120.0,
    stop=None,
    log: Path | None = None,
    hours: float = 0.0,
) -> EvaluationResult:
    torch.set_num_threads(1)
    if hours:
        _set_clock(hours)

    def progress(line: str) -> None:
        if log is not None:
            with log.open("a") as stream:
                print(line, file=stream, flush=True)

    return evaluation(pause).run(EvaluationState(folder, timeout), stop, progress)


def start(*arguments) -> multiprocessing.Process:
    """Run `work` in another process."""
    process = processes().Process(target=work, args=arguments)
    process.start()
    return process


def _set_clock(hours: float) -> None:
    """Simulate a machine whose clock is ahead, also for times of files."""
    now, utime = time.time, os.utime
    time.time = lambda: now() + 3600 * hours
    os.utime = lambda path: utime(path, (time.time(), time.time()))
    process_file.this_system = lambda: f"a machine {hours} hours ahead"
