"""Which of two models is more robust, from what both made of the same samples."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.evaluation.result import EvaluationResult, Verdict
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
_HARMLESS = ("eps", "seed", "batch_size")  # the text of eps_value; and what makes no attack stronger
_SAME_EPS = 1e-6  # 8/255 and 0.031373 are the same threat


@dataclass(frozen=True)
class ClassRow:
    """Robust accuracy on the samples of one class.

    Attributes:
        label: The class.
        total: Samples of it.
        robust: How many of them each model withstands.
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
    """Two models, A and B, on the samples that were judged for both.

    Attributes:
        samples: How many these are.
        clean: Clean accuracy of A and of B.
        robust: Robust accuracy of A and of B.
        difference: Of the robust accuracies, A minus B.
        p_value: Of the exact McNemar test that both are equally robust.
        more_samples: See `needed_samples`.
        classes: One row a class; empty where the labels are not known.
        notes: What a reader must know before the numbers are believed.
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
    def verdict(self) -> str:
        """The outcome in one sentence."""
        p = f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else "p < 0.001"
        if self.p_value <= SIGNIFICANCE:
            better, worse = ("A", "B") if self.difference.value > 0 else ("B", "A")
            return f"{better} is more robust than {worse} ({p})."
        disputed = self.difference.only_first + self.difference.only_second
        if not disputed:
            return "Cannot be told: A and B are robust on exactly the same samples."
        if self.more_samples is None:
            return f"Cannot be told ({p}): each is robust on {disputed // 2} samples where the other is not."
        return f"Cannot be told ({p}); at these rates, about {self.more_samples} more samples would be needed."

    def content(self) -> dict[str, Any]:
        """Everything as plain values."""
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
            "verdict": self.verdict,
        }


def compare(first: EvaluationResult, second: EvaluationResult) -> Comparison:
    """Compare two results sample by sample.

    Only samples that were judged in both count. They say what other test samples would give; not what training again
    with another seed would.

    Args:
        first: Of model A.
        second: Of model B.

    Raises:
        ValueError: Another threat model, other data, or no common sample.
    """
    _check_threat_model(first.attack, second.attack)
    _check_data(first, second)
    common, places_a, places_b = np.intersect1d(
        _judged_ids(first), _judged_ids(second), assume_unique=True, return_indices=True
    )
    if not len(common):
        raise ValueError("A and B have no judged sample in common. Judge both on the same samples.")
    verdicts = _judged(first, first.verdicts)[places_a], _judged(second, second.verdicts)[places_b]
    labels = _common_labels(first, second, places_a, places_b)
    robust = tuple(verdict == Verdict.ROBUST for verdict in verdicts)
    only_a, only_b = (int(np.count_nonzero(robust[i] & ~robust[1 - i])) for i in (0, 1))
    return Comparison(
        len(common),
        (_accuracy(verdicts[0] != Verdict.CLEAN_ERROR), _accuracy(verdicts[1] != Verdict.CLEAN_ERROR)),
        (_accuracy(robust[0]), _accuracy(robust[1])),
        paired_difference(only_a, only_b, len(common)),
        mcnemar(only_a, only_b),
        needed_samples(only_a, only_b, len(common), SIGNIFICANCE),
        () if labels is None else tuple(_class_rows(labels, robust[0], robust[1])),
        tuple(_notes(first, second, len(common))),
    )


def find_result(path: Path) -> Path:
    """The result file that somebody means.

    Args:
        path: The file itself, or a folder (or its folder `test`) that holds exactly one.

    Raises:
        ValueError: Nothing there, no result, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"There is no {path}. Give a result file, or the folder of a run that was tested.")
    for folder in (path, path / "test"):
        found = sorted(file for file in folder.glob("*.json") if _is_result(file))
        if len(found) > 1:
            raise ValueError(
                f"{folder} holds {len(found)} results: {', '.join(file.name for file in found)}. Give one of the files."
            )
        if found:
            return found[0]
    raise ValueError(f"{path} holds no result. Run `lightning-paf test` first, or give a result file.")


def load_result(path: Path) -> EvaluationResult:
    """Read a result file.

    Raises:
        ValueError: It is something else.
    """
    if not _is_result(path):
        raise ValueError(f"{path} is no result file. Give a JSON file that `lightning-paf test` wrote.")
    return EvaluationResult.load(path)


def _is_result(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"name", "attack", "verdicts", "seconds"} <= content.keys()


def _check_threat_model(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    differences = [
        f"{name.removesuffix('_value')} is {_shown(first, name)} for A and {_shown(second, name)} for B"
        for name in _THREAT_MODEL
        if not _same(first.get(name), second.get(name))
    ]
    if differences:
        raise ValueError(f"A and B were judged under different threats: {'; '.join(differences)}. Judge both alike.")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=_SAME_EPS)
    return bool(one == other)


def _shown(attack: Mapping[str, Any], name: str) -> Any:
    return attack.get("eps" if name == "eps_value" else name, "unknown")


def _check_data(first: EvaluationResult, second: EvaluationResult) -> None:
    """The fingerprint covers all samples that were asked for, so that it must agree only where these are the same."""
    prints = first.fingerprints.get("data"), second.fingerprints.get("data")
    same_ids = np.array_equal(_ids(first), _ids(second)) and _complete(first) and _complete(second)
    if None not in prints and prints[0] != prints[1] and same_ids:
        raise ValueError(
            "A and B were judged on different images or labels: the samples have the same numbers, but the "
            "fingerprints of the data differ. Judge both on the same --data."
        )


def _complete(result: EvaluationResult) -> bool:
    return result.total in (None, len(result.verdicts))


def _ids(result: EvaluationResult) -> NDArray[np.int64]:
    return np.arange(len(result.verdicts)) if result.ids is None else result.ids


def _judged(result: EvaluationResult, values: NDArray[Any]) -> NDArray[Any]:
    judged: NDArray[Any] = values[result.verdicts != Verdict.NOT_JUDGED]
    return judged


def _judged_ids(result: EvaluationResult) -> NDArray[np.int64]:
    return _judged(result, _ids(result))


def _common_labels(
    first: EvaluationResult, second: EvaluationResult, places_a: NDArray[np.int64], places_b: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    known = [
        _judged(result, result.labels)[places]
        for result, places in ((first, places_a), (second, places_b))
        if result.labels is not None
    ]
    if len(known) == 2 and (other := int(np.count_nonzero(known[0] != known[1]))):
        raise ValueError(
            f"A and B were judged on different data: {other} samples with the same number have another label. "
            "Judge both on the same --data."
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
    if common < max(first.judged, second.judged):
        notes.append(
            f"A was judged on {first.judged} samples, B on {second.judged}; compared are the {common} of both."
        )
    settings = sorted(
        name
        for name in {*first.attack, *second.attack} - {*_THREAT_MODEL, *_HARMLESS}
        if first.attack.get(name) != second.attack.get(name)
    )
    if settings:
        notes.append(f"The attacks differ in {', '.join(settings)}: so may their strength, and the accuracies with it.")
    if not (_complete(first) and _complete(second)):
        notes.append("An evaluation was stopped early: the p-value holds for a number of samples fixed in advance.")
    return notes
