"""A generator with a closed form, and processes that draw a pool from it."""

import time
from pathlib import Path

import torch
from torch import nn

from helpers.processes import processes
from lightning_paf.synthesis.generator import ImageGenerator
from lightning_paf.synthesis.pool import PoolSource, write_pool
from lightning_paf.synthesis.pool_plan import PoolPlan

PLAN = PoolPlan(count=50, num_classes=3, block_size=7, seed=5)
BLOCKS = 8


class Plain(ImageGenerator):
    """Images of one colour: the class plus a uniform number, over the number of classes."""

    def __init__(self, num_classes: int | None = 3, shape: tuple[int, int, int] = (1, 2, 2), pause: float = 0.0):
        self.shape = shape
        self.num_classes = num_classes
        self.pause = pause

    def sample(self, count, labels, rng):
        self.check_labels(count, labels)
        time.sleep(self.pause)
        values = torch.rand(count, generator=rng)
        if self.num_classes is not None:
            values = (labels + values) / self.num_classes
        return values.view(-1, 1, 1, 1).expand(-1, *self.shape)

    def describe(self):
        return {"shape": self.shape}


class Brightness(nn.Module):
    """A classifier of the mean brightness in three classes: surest of 0 for black, of 1 for grey, of 2 for white."""

    def forward(self, x):
        return -30 * (x.mean((1, 2, 3))[:, None] - torch.tensor([1 / 6, 1 / 2, 5 / 6])).square()


def work(out: Path, pause: float = 0.0, plan: PoolPlan = PLAN, number: int = 1) -> None:
    """Draw a pool, on `number` devices."""
    torch.set_num_threads(1)
    write_pool(out, plan, [PoolSource(Plain(pause=pause)) for _ in range(number)])


def start(*arguments):
    """Run `work` in another process."""
    process = processes().Process(target=work, args=arguments)
    process.start()
    return process
