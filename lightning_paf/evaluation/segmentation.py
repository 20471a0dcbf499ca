"""Dice of volumes in few-shot segmentation, clean and under attacks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_paf.evaluation.statistics import mean_interval
from lightning_paf.functional.segmentation import dice

CLEAN = "clean"
"""Condition without an attack."""


class VolumeCounts:
    """Sums of `dice_counts` over the slices of each volume and class, by condition.

    Args:
        pairs: Number of volumes and classes.
        conditions: Names of the conditions.
        device: Device of the sums.
    """

    def __init__(self, pairs: int, conditions: Sequence[str], device: torch.device) -> None:
        self.sums = {name: torch.zeros(pairs, 3, dtype=torch.int64, device=device) for name in conditions}

    def add(self, condition: str, numbers: Tensor, counts: Tensor) -> None:
        """Add the counts (N, 3) of slices of the pairs `numbers` (N,)."""
        self.sums[condition].index_add_(0, numbers, counts)

    def dice(self, condition: str) -> Tensor:
        """Dice (pairs,) over all slices; 1 where prediction and mask are empty."""
        return dice(self.sums[condition])


def summary(scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """Average the Dice over volumes, with 95 % intervals.

    Args:
        scores: For each condition a value per volume and class (pairs,).

    Returns:
        For each condition: `value`, `low`, `high` (clipped to [0, 1]; None for a single volume), and `volumes`, a value
        for each.
    """
    return {condition: _average(values.tolist()) for condition, values in scores.items()}


def _average(values: list[float]) -> dict[str, Any]:
    mean = mean_interval(values)
    known = math.isfinite(mean.low)
    ends = {"low": max(mean.low, 0.0), "high": min(mean.high, 1.0)} if known else {"low": None, "high": None}
    return {"value": mean.value, **ends, "volumes": values}
