"""The result of an experiment as plain values."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_paf.experiments.claim_result import Measured, compare, overall
from lightning_paf.experiments.experiment import Claim, Experiment
from lightning_paf.experiments.run import Task, eps_of, measured


def content(method: str, experiment: Experiment, tasks: Sequence[Task], budget: str) -> dict[str, Any]:
    """Summarise the finished tasks of an experiment: means, intervals, conclusions."""
    values = {(task.variant, task.seed): measured(task) for task in tasks}
    seeds = sorted({task.seed for task in tasks})
    names = list(next(iter(values.values())))
    results = [compare(claim, _sides(claim, values, seeds)) for claim in experiment.claims]
    return {
        "method": method,
        "title": experiment.title,
        "command": f"lightning-paf reproduce {method} --budget {budget} --seeds {len(seeds)}",
        "note": experiment.note,
        "eps": eps_of(tasks[0], experiment),
        "seeds": len(seeds),
        "examples": tasks[0].examples,
        "machine": _machine(),
        "plain": list(experiment.plain),
        "shown": list(experiment.shown),
        "variants": {
            variant.name: {name: [float(np.mean(values[variant.name, seed][name])) for seed in seeds] for name in names}
            for variant in experiment.variants
        },
        "claims": [
            {
                "text": result.claim.text,
                "source": result.claim.source,
                "metric": f"{result.claim.metric} > {result.claim.than}".removesuffix(" > "),
                "more": result.claim.more,
                "less": result.claim.less,
                "by": result.claim.by,
                "difference": result.difference,
                "low": result.low,
                "high": result.high,
                "shown": result.shown(result.claim.metric in experiment.plain),
                "conclusion": result.conclusion,
            }
            for result in results
        ],
        "conclusion": overall(results),
    }


def _sides(
    claim: Claim, values: Mapping[tuple[str, int], Mapping[str, NDArray[np.float64]]], seeds: list[int]
) -> Measured:
    """Values of both sides of a claim."""
    return {side: [values[variant, seed][name] for seed in seeds] for side, (variant, name) in claim.sides.items()}


def _machine() -> str:
    return f"{os.cpu_count()} CPUs ({platform.machine()}), torch {torch.__version__}"
