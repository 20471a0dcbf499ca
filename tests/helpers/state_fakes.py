"""A small record, a header, a judgement and a file system that refuses, for the tests of ledgers and verdicts."""

import os
from dataclasses import asdict
from functools import cache

import numpy as np

from helpers.evaluation_worker import BLOCK_SIZE, attack, model, samples
from lightning_paf.evaluation.evaluate import judge
from lightning_paf.evaluation.identity import Header
from lightning_paf.evaluation.record import Record
from lightning_paf.evaluation.state import MemoryLedger

HEADER = Header("m", "n", "d", 8, {"eps": "8/255"}, [{"label": "pgd", "steps": 10}], 4, 0, "fp32", "c")


def small_record(block=0, stage=1, after="a", seconds=1.0) -> Record:
    labels = np.array([0, 1, 2])
    x_adv = np.full((1, 1, 1, 1), 0.5, np.float32)
    predictions = np.array([0, 2, 2])
    return Record(block, stage, "pgd", 5, after, np.arange(3), labels, predictions, x_adv, 30, 20, 10, {"s": seconds})


def refuse(code):
    def refused(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return refused


def judged(ledger=None, **settings):
    settings = {"seed": 3, "block_size": BLOCK_SIZE} | settings
    return judge(model(), attack(), samples(), ledger or MemoryLedger(), **settings)


@cache
def undisturbed():
    """What one worker finds at once, in memory; not to be changed."""
    return judged()


def same(one, other) -> bool:
    arrays = ("ids", "labels", "predictions", "adversarial", "broken_by")
    counts = [[{**asdict(stage), "seconds": 0} for stage in judgement.stages] for judgement in (one, other)]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays) and counts[0] == counts[1]
