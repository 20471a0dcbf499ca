"""The outcome of a study as plain values."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.experiments.experiment import Claim, Study
from lightning_paf.experiments.outcome import Measured, compared, overall
from lightning_paf.experiments.run import Task, measured


def content(method: str, study: Study, tasks: Sequence[Task], budget: str) -> dict[str, Any]:
    """Means of all measures, an interval for each claim, and one word.

    Args:
        method: Name of the study.
        study: What was tried.
        tasks: All of them, done.
        budget: Name of the budget.
    """
    values = {(task.arm, task.seed): measured(task) for task in tasks}
    seeds = sorted({task.seed for task in tasks})
    names = list(next(iter(values.values())))
    outcomes = [compared(claim, _sides(claim, values, seeds)) for claim in study.claims]
    return {
        "method": method,
        "title": study.title,
        "command": f"lightning-paf reproduce {method} --budget {budget} --seeds {len(seeds)}",
        "note": study.note,
        "eps": study.eps,
        "seeds": len(seeds),
        "examples": tasks[0].examples,
        "machine": _machine(),
        "plain": list(study.plain),
        "shown": list(study.shown),
        "arms": {
            arm.name: {name: [float(np.mean(values[arm.name, seed][name])) for seed in seeds] for name in names}
            for arm in study.arms
        },
        "claims": [
            {
                "text": outcome.claim.text,
                "source": outcome.claim.source,
                "measure": f"{outcome.claim.measure} > {outcome.claim.than}".removesuffix(" > "),
                "more": outcome.claim.more,
                "less": outcome.claim.less,
                "by": outcome.claim.by,
                "difference": outcome.difference,
                "low": outcome.low,
                "high": outcome.high,
                "shown": outcome.shown(outcome.claim.measure in study.plain),
                "word": outcome.word,
            }
            for outcome in outcomes
        ],
        "word": overall(outcomes),
    }


def _sides(
    claim: Claim, values: Mapping[tuple[str, int], Mapping[str, NDArray[np.float64]]], seeds: list[int]
) -> Measured:
    """What was measured on both sides of a claim."""
    return {side: [values[arm, seed][name] for seed in seeds] for side, (arm, name) in claim.sides.items()}


def _machine() -> str:
    import torch

    return f"{os.cpu_count()} CPUs ({platform.machine()}), torch {torch.__version__}"
