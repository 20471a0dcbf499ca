"""The result of an experiment as plain values."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_paf.experiments.claim_result import compare, overall
from lightning_paf.experiments.claims import AbstractClaim, Measured
from lightning_paf.experiments.experiment import Experiment
from lightning_paf.experiments.run import Task, eps_of, measured
from lightning_paf.runs.metrics_table import read_table


def content(command: str, experiment: Experiment, tasks: Sequence[Task]) -> dict[str, Any]:
    """Summarise the finished tasks of an experiment: means, intervals, conclusions."""
    values = {(task.variant, task.seed): measured(task) for task in tasks}
    seeds = sorted({task.seed for task in tasks})
    first = next(iter(values.values()))
    names = list(first)
    results = [compare(claim, _sides(claim, values, seeds)) for claim in experiment.claims]
    return {
        "method": tasks[0].experiment,
        "title": experiment.title,
        "command": command,
        "note": experiment.note,
        "eps": None if experiment.measurement else eps_of(tasks[0], experiment),
        "seeds": len(seeds),
        "examples": len(first["clean"]) if "clean" in first else max(map(len, first.values())),
        "machine": _machine(),
        "plain": list(experiment.plain),
        "shown": list(experiment.shown),
        **_extras(experiment, tasks),
        "variants": {
            variant.name: {name: [_mean(values[variant.name, seed][name]) for seed in seeds] for name in names}
            for variant in experiment.variants
        },
        "claims": [
            {
                "text": result.claim.text,
                "source": result.claim.source,
                **result.claim.described(),
                "by": result.claim.by,
                "difference": result.difference,
                "low": result.low,
                "high": result.high,
                "shown": result.shown(result.claim.is_plain(experiment.plain)),
                "conclusion": result.conclusion,
            }
            for result in results
        ],
        "conclusion": overall(results),
    }


def _sides(
    claim: AbstractClaim, values: Mapping[tuple[str, int], Mapping[str, NDArray[np.float64]]], seeds: list[int]
) -> Measured:
    """Values of the variants and metrics of a claim."""
    return {(variant, name): [values[variant, seed][name] for seed in seeds] for variant, name in claim.sides}


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean over images; None for JSON where it is undefined or infinite."""
    mean = float(np.mean(values))
    return mean if math.isfinite(mean) else None


def _extras(experiment: Experiment, tasks: Sequence[Task]) -> dict[str, Any]:
    """Entries that only some experiments or options need."""
    extras: dict[str, Any] = {"unit": experiment.measurement.unit} if experiment.measurement else {}
    if tasks[0].autoattack_examples is not None:
        extras["autoattack_examples"] = tasks[0].autoattack_examples
    if experiment.figures:
        extras["figures"] = list(experiment.figures)
    if experiment.histories:
        extras["histories"] = {
            variant.name: [_history(task, experiment.histories) for task in tasks if task.variant == variant.name]
            for variant in experiment.variants
        }
    return extras


def _history(task: Task, columns: Sequence[str]) -> dict[str, list[float]]:
    """Values of each column in every epoch that has one, to 5 digits."""
    _, rows = read_table(task.output / "run" / "metrics.csv")
    found = {column: {row["epoch"]: row[column] for row in rows if row.get(column)} for column in columns}
    return {column: [float(f"{float(value):.5g}") for value in of.values()] for column, of in found.items() if of}


def _machine() -> str:
    return f"{os.cpu_count()} CPUs ({platform.machine()}), torch {torch.__version__}"
