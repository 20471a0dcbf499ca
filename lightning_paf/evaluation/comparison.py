"""Comparison of the robust accuracies of two models on the same samples."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.evaluation.result import EvaluationResult, with_new_names
from lightning_paf.evaluation.statistics import (
    Accuracy,
    Difference,
    exact_accuracy,
    mcnemar,
    needed_samples,
    paired_difference,
)
from lightning_paf.utils.files import parse_json

SIGNIFICANCE = 0.05
_IGNORED = ("norm", "eps", "eps_value", "bounds", "seed", "batch_size")
"""Settings that are compared separately or do not affect the attack's strength."""
_SAME_EPS = 1e-6  # 8/255 and 0.031373 are the same threat model


@dataclass(frozen=True)
class ClassRow:
    """Counts of one class: all samples, and those on which A and B are robust."""

    label: int
    total: int
    robust: tuple[int, int]

    @property
    def difference(self) -> float:
        """First robust accuracy minus second, in [-1, 1]."""
        return (self.robust[0] - self.robust[1]) / self.total


@dataclass(frozen=True)
class Comparison:
    """Two models, A and B, on their common samples.

    Attributes:
        samples: Number of common samples.
        clean: Clean accuracies of A and B.
        robust: Robust accuracies of A and B.
        difference: Difference of the robust accuracies, A minus B.
        p_value: P-value of the exact McNemar test that both are equally robust.
        more_samples: See `needed_samples`.
        classes: One row for each class; empty without labels.
        notes: Limitations of the comparison.
    """

    samples: int
    clean: tuple[Accuracy, Accuracy]
    robust: tuple[Accuracy, Accuracy]
    difference: Difference
    p_value: float
    more_samples: int | None
    classes: tuple[ClassRow, ...]
    notes: tuple[str, ...]

    @property
    def conclusion(self) -> str:
        """The result in one sentence."""
        p = f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else "p < 0.001"
        if self.p_value <= SIGNIFICANCE:
            better, worse = ("A", "B") if self.difference.value > 0 else ("B", "A")
            return f"{better} is more robust than {worse} ({p})."
        differing = self.difference.only_first + self.difference.only_second
        if not differing:
            return "Inconclusive: A and B are robust on exactly the same samples."
        if self.more_samples is None:
            return f"Inconclusive ({p}): each is robust on {differing // 2} samples where the other is not."
        return f"Inconclusive ({p}); at these rates, about {self.more_samples} more samples would be needed."

    def content(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "samples": self.samples,
            "clean": [asdict(accuracy) | {"accuracy": accuracy.value} for accuracy in self.clean],
            "robust": [asdict(accuracy) | {"accuracy": accuracy.value} for accuracy in self.robust],
            "difference": asdict(self.difference),
            "confidence": 0.95,
            "mcnemar_p": self.p_value,
            "more_samples_needed": self.more_samples,
            "classes": [asdict(row) | {"difference": row.difference} for row in self.classes],
            "notes": list(self.notes),
            "conclusion": self.conclusion,
        }


def compare(first: EvaluationResult, second: EvaluationResult) -> Comparison:
    """Compare the results of two models, A and B, on their common samples.

    The conclusion is about other test samples, not about other training seeds.

    Raises:
        ValueError: Different threat models, different data, or no common sample.
    """
    _check_threat_model(first.attack, second.attack)
    ids = [result.ids[result.outcomes != Outcome.NOT_EVALUATED] for result in (first, second)]
    _check_data(first, second, np.array_equal(ids[0], ids[1]))
    common = np.intersect1d(ids[0], ids[1], assume_unique=True)
    if not len(common):
        raise ValueError("A and B must have evaluated samples in common, got none. Evaluate both on the same samples.")
    rows = [np.argsort(result.ids)[np.searchsorted(np.sort(result.ids), common)] for result in (first, second)]
    outcomes = first.outcomes[rows[0]], second.outcomes[rows[1]]
    labels = _common_labels([r.labels[at] for r, at in zip((first, second), rows, strict=True) if len(r.labels)])
    a, b = (outcome == Outcome.ROBUST for outcome in outcomes)
    only_a, only_b = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))
    return Comparison(
        len(common),
        (_accuracy(outcomes[0] != Outcome.MISCLASSIFIED), _accuracy(outcomes[1] != Outcome.MISCLASSIFIED)),
        (_accuracy(a), _accuracy(b)),
        paired_difference(only_a, only_b, len(common)),
        mcnemar(only_a, only_b),
        needed_samples(only_a, only_b, len(common), SIGNIFICANCE),
        () if labels is None else tuple(_class_rows(labels, a, b)),
        tuple(_notes(first, second, len(common))),
    )


def order_note(standard: Mapping[str, float], strong: Mapping[str, float]) -> str:
    """Sentence about the order of models under two versions of AutoAttack.

    Args:
        standard: Robust accuracy of each model under `standard`.
        strong: The same under `strong`.
    """
    changed = [
        f"{a} and {b}"
        for a, b in combinations(standard, 2)
        if np.sign(standard[a] - standard[b]) != np.sign(strong[a] - strong[b])
    ]
    if not changed:
        return "The order is the same under standard and strong AutoAttack."
    return f"Strong AutoAttack changes the order of {', '.join(changed)}."


def results_in(path: Path) -> dict[Path, EvaluationResult]:
    """Load a result file, or all in a folder, by path.

    A folder is searched first, then its subfolder `test`.

    Raises:
        ValueError: There is no result.
    """
    for files in ([path],) if path.is_file() else (path.glob("*.json"), (path / "test").glob("*.json")):
        if found := sorted(file for file in files if _is_result(file)):
            return {file: EvaluationResult.load(file) for file in found}
    raise ValueError(
        f"There is no result in {path}. Pass a JSON file of `lightning-paf test`, or the folder of a tested run."
    )


def _is_result(path: Path) -> bool:
    try:
        content = parse_json(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"name", "attack", "outcomes", "seconds"} <= with_new_names(content).keys()


def _check_threat_model(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    differences = []
    for name, value in (("norm", "norm"), ("eps", "eps_value"), ("bounds", "bounds")):
        a, b = first.get(value), second.get(value)
        close = isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=0, abs_tol=_SAME_EPS)
        if a != b and not close:
            shown = first.get(name, "unknown"), second.get(name, "unknown")
            differences.append(f"{name} is {shown[0]} for A and {shown[1]} for B")
    if differences:
        raise ValueError(f"Threat models must be equal, got: {'; '.join(differences)}. Evaluate both with the same.")


def _check_data(first: EvaluationResult, second: EvaluationResult, same_ids: bool) -> None:
    """Compare the fingerprints of the data, which cover all samples of an evaluation."""
    prints = first.fingerprints.get("data"), second.fingerprints.get("data")
    comparable = same_ids and _complete(first) and _complete(second) and None not in prints
    if comparable and prints[0] != prints[1]:
        raise ValueError(
            "Images and labels must be the same for A and B, got different fingerprints of the data for the same "
            "indices. Evaluate both on the same --data."
        )


def _complete(result: EvaluationResult) -> bool:
    return result.total in (None, len(result.outcomes))


def _common_labels(known: list[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    """Check that the labels of A and B are equal, as far as they are known."""
    if len(known) == 2 and (other := int(np.count_nonzero(known[0] != known[1]))):
        raise ValueError(
            f"Labels must be the same for A and B, got {other} samples with the same index and different labels. "
            "Evaluate both on the same --data."
        )
    return known[0] if known else None


def _accuracy(correct: NDArray[np.bool_]) -> Accuracy:
    return exact_accuracy(int(np.count_nonzero(correct)), len(correct))


def _class_rows(labels: NDArray[np.int64], a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Iterator[ClassRow]:
    for label in np.unique(labels):
        mask = labels == label
        yield ClassRow(int(label), int(mask.sum()), (int(a[mask].sum()), int(b[mask].sum())))


def _notes(first: EvaluationResult, second: EvaluationResult, common: int) -> list[str]:
    notes = []
    if common < max(first.evaluated, second.evaluated):
        notes.append(
            f"A was evaluated on {first.evaluated} samples, B on {second.evaluated}; {common} are in both and compared."
        )
    settings = sorted(
        name
        for name in {*first.attack, *second.attack} - {*_IGNORED}
        if first.attack.get(name) != second.attack.get(name)
    )
    if settings:
        notes.append(f"The attacks differ in {', '.join(settings)}, so their strengths may differ.")
    if not (_complete(first) and _complete(second)):
        notes.append("An evaluation was stopped early: the p-value holds for a number of samples fixed in advance.")
    return notes
