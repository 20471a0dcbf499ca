"""A small record, an identity, a result, and errors of the file system."""

import os
from dataclasses import asdict
from functools import cache

import numpy as np

from helpers.evaluation_worker import evaluation
from lightning_paf.evaluation.identity import Identity
from lightning_paf.evaluation.state import Record

IDENTITY = Identity("m", "n", "d", 8, {"eps": "8/255"}, [{"label": "pgd", "steps": 10}], 4, 0, "fp32", "c")
COLUMNS = ("ids", "labels", "predictions", "adversarial", "fooled_by", "outcomes")


def small_record(block=0, sub_attack=1, after="a", seconds=1.0) -> Record:
    x_adv = np.full((min(sub_attack, 1), 1, 1, 1), 0.5, np.float32)
    arrays = (np.arange(3), np.array([0, 1, 2]), np.array([0, 2, 2]), x_adv)
    return Record(block, sub_attack, "pgd", 5, after, *arrays, 30, 20, 10, {"s": seconds})


def refuse(code):
    def refused(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return refused


@cache
def undisturbed():
    """The result of one process without interruptions, in memory; tests must not modify it."""
    return evaluation().run()


def fingerprints(state) -> dict[tuple[int, int], str]:
    return {key: record.fingerprint for key in state.recorded() if (record := state.read(*key))}


def same(one, other) -> bool:
    counts = [[{**asdict(part), "seconds": 0} for part in result.sub_attacks] for result in (one, other)]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS) and counts[0] == counts[1]
