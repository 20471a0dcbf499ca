"""The outcome of a study as plain values."""

import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_paf.studies.outcome import compared, overall
from lightning_paf.studies.run import Task, measured
from lightning_paf.studies.study import Study


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
    outcomes = [
        compared(claim, {arm: [values[arm, seed][claim.measure] for seed in seeds] for arm in (claim.more, claim.less)})
        for claim in study.claims
    ]
    return {
        "method": method,
        "title": study.title,
        "command": f"lightning-paf reproduce {method} --budget {budget} --seeds {len(seeds)}",
        "note": study.note,
        "eps": study.eps,
        "seeds": len(seeds),
        "examples": tasks[0].examples,
        "machine": _machine(),
        "arms": {
            arm.name: {name: [float(np.mean(values[arm.name, seed][name])) for seed in seeds] for name in names}
            for arm in study.arms
        },
        "claims": [
            {
                "text": outcome.claim.text,
                "source": outcome.claim.source,
                "measure": outcome.claim.measure,
                "more": outcome.claim.more,
                "less": outcome.claim.less,
                "by": outcome.claim.by,
                "difference": outcome.difference,
                "low": outcome.low,
                "high": outcome.high,
                "shown": str(outcome),
                "word": outcome.word,
            }
            for outcome in outcomes
        ],
        "word": overall(outcomes),
    }


def _machine() -> str:
    import torch

    return f"{os.cpu_count()} CPUs ({platform.machine()}), torch {torch.__version__}"
