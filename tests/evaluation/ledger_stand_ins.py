"""A small record, a header and a file system that refuses, for the tests of ledgers."""

import os

import numpy as np

from lightning_paf.evaluation.header import Header
from lightning_paf.evaluation.record import Record

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
