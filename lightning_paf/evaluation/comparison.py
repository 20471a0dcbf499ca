"""Comparison of the robust accuracies of two models on the same samples."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.evaluation.result import EvaluationResult, Outcome, with_new_names
from lightning_paf.evaluation.statistics import (
    Accuracy,
    Difference,
    exact_accuracy,
    mcnemar,
    needed_samples,
    paired_difference,
)

SIGNIFICANCE = 0.05
_THREAT_MODEL = ("norm", "eps_value", "bounds")
_HARMLESS = ("eps", "seed", "batch_size")  # the text of eps_value, and settings without influence on the strength
_SAME_EPS = 1e-6  # 8/255 and 0.031373 are the same threat model


@dataclass(frozen=True)
class ClassRow:
    """Robust samples of one class.

    Attributes:
        label: The class.
        total: Samples of it.
        robust: Robust ones of model A and of B.
    """

    label: int
    total: int
    robust: tuple[int, int]

    @property
    def difference(self) -> float:
        """First robust accuracy minus second, in [-1, 1]."""
        return (self.robust[0] - self.robust[1]) / self.total


@dataclass(frozen=True)
class Comparison:
    """Two models, A and B, on the samples that were evaluated for both.

    Attributes:
        samples: Number of these samples.
        clean: Clean accuracy of A and of B.
        robust: Robust accuracy of A and of B.
        difference: Difference of the robust accuracies, A minus B.
        p_value: Of the exact McNemar test that both are equally robust.
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
    """Compare two results on the samples that were evaluated in both.

    The conclusion is about other test samples, not about other training seeds.

    Args:
        first: Result of model A.
        second: Result of model B.

    Raises:
        ValueError: Different threat models, different data, or no common sample.
    """
    _check_threat_model(first.attack, second.attack)
    _check_data(first, second)
    common, a, b = np.intersect1d(_ids(first), _ids(second), assume_unique=True, return_indices=True)
    if not len(common):
        raise ValueError("A and B must have evaluated samples in common, got none. Evaluate both on the same samples.")
    outcomes = _evaluated(first, first.outcomes)[a], _evaluated(second, second.outcomes)[b]
    labels = _common_labels(first, second, a, b)
    robust = [outcome == Outcome.ROBUST for outcome in outcomes]
    only_a, only_b = (int(np.count_nonzero(robust[i] & ~robust[1 - i])) for i in (0, 1))
    return Comparison(
        len(common),
        (_accuracy(outcomes[0] != Outcome.MISCLASSIFIED), _accuracy(outcomes[1] != Outcome.MISCLASSIFIED)),
        (_accuracy(robust[0]), _accuracy(robust[1])),
        paired_difference(only_a, only_b, len(common)),
        mcnemar(only_a, only_b),
        needed_samples(only_a, only_b, len(common), SIGNIFICANCE),
        () if labels is None else tuple(_class_rows(labels, robust[0], robust[1])),
        tuple(_notes(first, second, len(common))),
    )


def find_result(path: Path) -> Path:
    """Find a result file.

    Args:
        path: The file itself, or a folder (or its folder `test`) that holds exactly one.

    Raises:
        ValueError: There is no such path, no result, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"There is no {path}. Pass a result file, or the folder of a tested run.")
    for folder in (path, path / "test"):
        found = sorted(file for file in folder.glob("*.json") if _is_result(file))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ValueError(f"{folder} must hold one result, got {len(found)}: {names}. Pass one of the files.")
        if found:
            return found[0]
    raise ValueError(f"{path} holds no result. Run `lightning-paf test` first, or pass a result file.")


def load_result(path: Path) -> EvaluationResult:
    """Read a result file.

    Raises:
        ValueError: It is something else.
    """
    if not _is_result(path):
        raise ValueError(f"{path} is no result file. Pass a JSON file that `lightning-paf test` wrote.")
    return EvaluationResult.load(path)


def _is_result(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"name", "attack", "outcomes", "seconds"} <= with_new_names(content).keys()


def _check_threat_model(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    differences = [
        f"{name.removesuffix('_value')} is {_shown(first, name)} for A and {_shown(second, name)} for B"
        for name in _THREAT_MODEL
        if not _same(first.get(name), second.get(name))
    ]
    if differences:
        raise ValueError(f"Threat models must be equal, got: {'; '.join(differences)}. Evaluate both with the same.")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=_SAME_EPS)
    return bool(one == other)


def _shown(attack: Mapping[str, Any], name: str) -> Any:
    return attack.get("eps" if name == "eps_value" else name, "unknown")


def _check_data(first: EvaluationResult, second: EvaluationResult) -> None:
    """Compare the fingerprints of the data, which cover all samples of an evaluation."""
    prints = first.fingerprints.get("data"), second.fingerprints.get("data")
    same_ids = np.array_equal(_ids(first), _ids(second)) and _complete(first) and _complete(second)
    if None not in prints and prints[0] != prints[1] and same_ids:
        raise ValueError(
            "Images and labels must be the same for A and B, got different fingerprints of the data for the same "
            "indices. Evaluate both on the same --data."
        )


def _complete(result: EvaluationResult) -> bool:
    return result.total in (None, len(result.outcomes))


def _evaluated(result: EvaluationResult, values: NDArray[Any]) -> NDArray[Any]:
    evaluated: NDArray[Any] = values[result.outcomes != Outcome.NOT_EVALUATED]
    return evaluated


def _ids(result: EvaluationResult) -> NDArray[np.int64]:
    return _evaluated(result, result.ids)


def _common_labels(
    first: EvaluationResult, second: EvaluationResult, a: NDArray[np.int64], b: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    known = [
        _evaluated(result, result.labels)[indices]
        for result, indices in ((first, a), (second, b))
        if len(result.labels)
    ]
    if len(known) == 2 and (other := int(np.count_nonzero(known[0] != known[1]))):
        raise ValueError(
            f"Labels must be the same for A and B, got {other} samples with the same index and different labels. "
            "Evaluate both on the same --data."
        )
    return known[0] if known else None


def _accuracy(correct: NDArray[np.bool_]) -> Accuracy:
    return exact_accuracy(int(np.count_nonzero(correct)), len(correct))


def _class_rows(labels: NDArray[np.int64], a: NDArray[np.bool_], b: NDArray[np.bool_]) -> list[ClassRow]:
    return [
        ClassRow(int(label), int(of.sum()), (int((a & of).sum()), int((b & of).sum())))
        for label in np.unique(labels)
        for of in [labels == label]
    ]


def _notes(first: EvaluationResult, second: EvaluationResult, common: int) -> list[str]:
    notes = []
    if common < max(first.evaluated, second.evaluated):
        notes.append(
            f"A was evaluated on {first.evaluated} samples, B on {second.evaluated}; compared are the {common} of both."
        )
    settings = sorted(
        name
        for name in {*first.attack, *second.attack} - {*_THREAT_MODEL, *_HARMLESS}
        if first.attack.get(name) != second.attack.get(name)
    )
    if settings:
        notes.append(f"The attacks differ in {', '.join(settings)}, so that their strengths may differ.")
    if not (_complete(first) and _complete(second)):
        notes.append("An evaluation was stopped early: the p-value holds for a number of samples fixed in advance.")
    return notes
