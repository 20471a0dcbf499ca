"""Comparison of any number of models with the first of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.evaluation.comparison import Comparison, compare
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.statistics import Accuracy, Difference
from lightning_paf.utils.figures import GREY, REFERENCE, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One evaluation of one model.

    Attributes:
        evaluation: Name such as `autoattack_linf_8-255`.
        model: Shortest name of the run or file.
        samples: Number of evaluated samples.
        clean: Clean accuracy on them.
        robust: Robust accuracy on them.
        comparison: With the first model as B, on the common samples; None for the first model.
    """

    evaluation: str
    model: str
    samples: int
    clean: Accuracy
    robust: Accuracy
    comparison: Comparison | None

    @property
    def difference(self) -> Difference | None:
        """Robust accuracy minus that of the first model; None for the first model."""
        return self.comparison.difference if self.comparison else None

    def content(self) -> dict[str, Any]:
        """Return plain values; accuracies are in [0, 1], and None without a comparison."""
        values: dict[str, Any] = {"evaluation": self.evaluation, "model": self.model, "samples": self.samples}
        for name in ("clean", "robust", "difference"):
            ends = {name: "value", f"{name}_low": "low", f"{name}_high": "high"}
            values |= {key: getattr(getattr(self, name), end, None) for key, end in ends.items()}
        return values | {"mcnemar_p": self.comparison.p_value if self.comparison else None}


def compare_all(paths: Sequence[Path], read: Sequence[Mapping[Path, EvaluationResult]]) -> tuple[list[Row], list[str]]:
    """Compare every model with the first, in every evaluation that the first has.

    Args:
        paths: Result files, or run folders with one or more results.
        read: `results_in` each of them.

    Returns:
        Rows, by evaluation and then in the order of `paths`, and notes.

    Raises:
        ValueError: Two results cannot be compared.
    """
    found = [{file.stem: result for file, result in results.items()} for results in read]
    if all(len(results) == 1 for results in found):  # the user chose the files, which can differ in their names
        found = [{next(iter(found[0])): result for result in results.values()} for results in found]
    models, rows, notes = names_of(paths), [], []
    for evaluation, first in found[0].items():
        for model, results in zip(models, found, strict=True):
            if evaluation in results:
                comparison = None if results is found[0] else _compare(results[evaluation], first, model, models[0])
                own = results[evaluation]
                rows.append(Row(evaluation, model, own.evaluated, own.clean, own.robust, comparison))
            else:
                notes.append(f"{model} has no result {evaluation}.")
    for row in rows:
        notes += (
            [f"{row.model} (A), {models[0]} (B): {note}" for note in row.comparison.notes] if row.comparison else []
        )
    return rows, notes


def _compare(result: EvaluationResult, first: EvaluationResult, model: str, first_model: str) -> Comparison:
    try:
        return compare(result, first)
    except ValueError as error:
        raise ValueError(f"Comparison of A, {model}, with B, {first_model}: {error}") from error


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return the parts of the paths that differ, without common parents."""
    absolute = [path.resolve() for path in paths]
    parent = os.path.commonpath([path.parent for path in absolute])
    return [os.path.relpath(path, parent).removesuffix(".json") for path in absolute]


def draw(rows: Sequence[Row]) -> "Figure":
    """Draw accuracies, and differences to the first model, with their intervals."""
    evaluations = list(dict.fromkeys(row.evaluation for row in rows))
    height = 1.2 + 0.3 * (len(rows) + len(evaluations))
    with open_figure(9, height) as figure:
        panels = figure.subplots(len(evaluations), 2, squeeze=False)
        for (left, right), evaluation in zip(panels, evaluations, strict=True):
            of = [row for row in rows if row.evaluation == evaluation]
            places = range(len(of))
            for offset, name, colour in ((-0.12, "clean", GREY), (0.12, "robust", None)):
                _draw_intervals(left, [at + offset for at in places], [getattr(row, name) for row in of], name, colour)
            _draw_intervals(right, places[1:], [row.difference for row in of[1:]], "", None)
            right.axvline(0, **REFERENCE)
            left.set(title=evaluation, xlabel="accuracy (%)", xlim=(0, 100), yticks=places)
            left.set_yticklabels([row.model for row in of])
            right.set(title=f"robust, minus {of[0].model}", xlabel="points", yticks=places, yticklabels=[])
            for axes in (left, right):
                axes.set_ylim(len(of) - 0.5, -0.5)
                axes.grid(axis="x")
        panels[0, 0].legend(loc="best")
    return figure


def _draw_intervals(axes: Any, places: Sequence[float], values: Sequence[Any], label: str, colour: str | None) -> None:
    shown = [value.value for value in values]
    ends = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
    percent = [[100 * value for value in side] for side in (shown, *ends)]
    axes.errorbar(
        percent[0], places, xerr=percent[1:], fmt="o", markersize=5, capsize=3, label=label, color=colour or "C0"
    )
