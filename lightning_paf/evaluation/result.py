"""The result of an evaluation, sample by sample, and its file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_paf.attacks.probe import Flags, gradient_flag, masking_flag
from lightning_paf.attacks.target import goals_of
from lightning_paf.evaluation.outcomes import CERTIFICATE, BlockResult, ClassRow, Outcome, PairRow
from lightning_paf.evaluation.state import Record, State
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.evaluation.stopping import Interval, anytime_interval
from lightning_paf.functional.predictions import NO_PREDICTION
from lightning_paf.runs.weights_origin import WeightsOrigin
from lightning_paf.specs import class_name
from lightning_paf.utils.files import explained, parse_json, write_whole

if TYPE_CHECKING:
    from lightning_paf.evaluation.evaluate import Evaluation

_PER_SAMPLE: Mapping[str, type] = {
    "ids": np.int64,
    "labels": np.int64,
    "predictions": np.int64,
    "adversarial": np.int64,
    "fooled_by": np.int8,
}
_UNKNOWN: NDArray[Any] = np.empty(0, np.int64)
_OLD_NAMES = {"verdicts": "outcomes", "broken_by": "fooled_by", "stages": "sub_attacks", "broken": "fooled"}


@dataclass(frozen=True)
class SubAttackSummary:
    """Counts of one sub-attack.

    Attributes:
        label: `clean`, or the label of the sub-attack.
        attacked: Samples that it was run on.
        fooled: Samples that were misclassified after it.
        forward: Images passed forward by the search.
        backward: Images passed backward.
        exact: Images passed forward by the unmodified model in float32.
        seconds: Duration, summed over workers.
    """

    label: str
    attacked: int
    fooled: int
    forward: int
    backward: int
    exact: int
    seconds: float

    @classmethod
    def of(cls, records: Sequence[Record]) -> "SubAttackSummary":
        """Add up the records of one sub-attack on several blocks."""
        fooled = sum(int(np.count_nonzero(record.fooled)) for record in records)
        attacked = sum(len(record.ids) for record in records)
        passes = {name: sum(getattr(record, name) for record in records) for name in ("forward", "backward", "exact")}
        seconds = sum(float(record.note.get("seconds", 0.0)) for record in records)
        return cls(records[0].label, attacked, fooled, **passes, seconds=seconds)


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Clean and robust accuracy of one model under one attack, sample by sample.

    Attributes:
        name: As in `test/acc_{name}`.
        attack: `Attack.describe()`: class, norm, eps, steps, ...
        outcomes: `Outcome` of each sample, (n,) uint8.
        seconds: Duration of the sub-attacks, summed over processes.
        ids: Index in the dataset of each sample, int64; by default 0, 1, 2, ...
        labels: Label of each sample, int64; empty if unknown.
        predictions: Class of each clean image, int64, -1 where the logits are not finite; empty if unknown.
        adversarial: Class of each adversarial image if there is one, else of the clean image; empty if unknown.
        fooled_by: Index into `sub_attacks` of the one that fooled the model, int8, -1 for none; empty if unknown.
        certified: Whether each sample has a certificate, bool; empty without certificates.
        sub_attacks: Summary of each sub-attack, first `clean`; empty if unknown.
        fingerprints: Fingerprints of `model`, `network`, `data` and `code`.
        seed: Seed of the evaluation; None if unknown.
        precision: Precision of the search; every success is confirmed in float32.
        total: Samples to evaluate; more than `evaluated` after an early stop; None if unknown.
        weights: Origin of the evaluated weights; None if unknown.
        identity: Fingerprint of everything that the result depends on, except the code; None if unknown.
        dataset: Name of the data.
        class_names: Names of the classes in the order of the labels; empty if they have none.
        flags: Signs of an unreliable result, one sentence each; see `attacks.probe`.
        calibration: Calibration and risk-coverage curve, `clean` and `attacked`; see `confidence_of`.
        checkpoint: File of the evaluated weights; not saved.
        evaluation: Model, attack and samples; None for a loaded result.
        state: Holds the adversarial images; None for a loaded result.
    """

    name: str
    attack: Mapping[str, Any]
    outcomes: NDArray[np.uint8]
    seconds: float
    ids: NDArray[np.int64] = field(default_factory=lambda: _UNKNOWN)
    labels: NDArray[np.int64] = field(default_factory=lambda: _UNKNOWN)
    predictions: NDArray[np.int64] = field(default_factory=lambda: _UNKNOWN)
    adversarial: NDArray[np.int64] = field(default_factory=lambda: _UNKNOWN)
    fooled_by: NDArray[np.int8] = field(default_factory=lambda: _UNKNOWN)
    certified: NDArray[np.bool_] = field(default_factory=lambda: _UNKNOWN)
    sub_attacks: tuple[SubAttackSummary, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    precision: str = "fp32"
    total: int | None = None
    weights: WeightsOrigin | None = None
    identity: str | None = None
    dataset: str = "unnamed"
    class_names: Sequence[str] = ()
    flags: Flags = field(default_factory=dict)
    calibration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoint: Path | None = None
    evaluation: "Evaluation | None" = field(default=None, repr=False)
    state: State | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not len(self.ids):
            object.__setattr__(self, "ids", np.arange(len(self.outcomes)))

    @classmethod
    def of(
        cls, evaluation: "Evaluation", state: State, blocks: Sequence[Sequence[Record]], stop: str | None
    ) -> "EvaluationResult":
        """Combine all records of the first blocks; `stop` describes the stop rule."""
        parts = [BlockResult.of(records) for records in blocks]
        sub_attacks = tuple(SubAttackSummary.of(records) for records in zip(*blocks, strict=True))
        names = ("labels", "predictions", "adversarial", "fooled_by")
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        if evaluation.certify:
            columns["certified"] = np.concatenate([part.certified for part in parts])
        identity = evaluation.identity
        return cls(
            evaluation.attack.label,
            identity.attack,
            np.concatenate([part.outcomes for part in parts]),
            sum(summary.seconds for summary in sub_attacks),
            np.concatenate([records[0].ids for records in blocks]),
            **columns,
            sub_attacks=sub_attacks,
            fingerprints={part: getattr(identity, part) for part in ("model", "network", "data", "code")},
            seed=evaluation.seed,
            precision=evaluation.precision,
            total=len(evaluation.samples),
            identity=identity.of_result(stop),
            flags={**evaluation.probe.flags, **_flags(columns["adversarial"], sub_attacks, blocks)},
            evaluation=evaluation,
            state=state,
        )

    @property
    def evaluated(self) -> int:
        """Number of evaluated samples."""
        return int(np.count_nonzero(self.outcomes != Outcome.NOT_EVALUATED))

    @property
    def clean(self) -> Accuracy:
        """Clean accuracy on the evaluated samples, with its 95 % interval."""
        return exact_accuracy(self.evaluated - self._count(Outcome.MISCLASSIFIED), self.evaluated)

    @property
    def robust(self) -> Accuracy:
        """Robust accuracy on the evaluated samples, with its 95 % interval."""
        return exact_accuracy(self._count(Outcome.ROBUST), self.evaluated)

    @property
    def certified_robust(self) -> Accuracy | None:
        """Certified accuracy with its 95 % interval; None without certificates."""
        return exact_accuracy(int(np.count_nonzero(self.certified)), self.evaluated) if len(self.certified) else None

    @property
    def anytime(self) -> Interval | None:
        """Interval of the robust accuracy on all samples; None without an early stop.

        Unlike the interval of `robust`, it is valid although the stop depended on the outcomes.
        """
        if self.total is None or self.evaluated == self.total:
            return None
        return anytime_interval(self.robust.correct, self.evaluated, self.total)

    def robust_before(self, label: str) -> NDArray[np.bool_]:
        """Whether each sample was robust before a sub-attack, (n,).

        Without a sub-attack of this label, the final outcome counts. With `version=strong`,
        `robust_before("smoothed-pgd")` is the result of `standard`.
        """
        robust: NDArray[np.bool_] = self.outcomes == Outcome.ROBUST
        labels = [part.label for part in self.sub_attacks]
        return np.logical_or(robust, self.fooled_by >= labels.index(label)) if label in labels else robust

    def per_class(self) -> list[ClassRow]:
        """Return the counts of each evaluated class, in order; empty without labels."""
        rows = []
        for label in np.unique(self.labels[self.outcomes != Outcome.NOT_EVALUATED] if len(self.labels) else []):
            counts = np.bincount(self.outcomes[self.labels == label], minlength=len(Outcome)).tolist()
            evaluated = sum(counts) - counts[Outcome.NOT_EVALUATED]
            rows.append(ClassRow(int(label), evaluated, evaluated - counts[3], counts[Outcome.ROBUST]))
        return rows

    def per_pair(self) -> list[PairRow]:
        """Return the counts of each evaluated class and its target; empty without one."""
        target: Any = self.attack.get("target")
        rows = []
        for label, _, clean, robust in self.per_class() if target is not None else ():
            goal = int(goals_of(target, torch.tensor(label)))
            rows += [PairRow(label, goal, clean, clean - robust)] if goal != label else []
        return rows

    def class_name(self, label: int) -> str:
        """Return the name of a class; `class K` without names."""
        return class_name(self.class_names, label)

    def examples(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield ids (k,) and adversarial images (k, C, H, W) of the fooled, by block.

        Raises:
            ValueError: The result was loaded from a file, or a record is missing in its state.
        """
        if self.evaluation is None or self.state is None:
            raise ValueError("Adversarial images are in the state, not in a result file. Run the evaluation again.")
        index = {sample: number for number, sample in enumerate(self.ids.tolist())}
        for block in range(-(-len(self.ids) // self.evaluation.block_size)):
            records = [self.state.read(block, number) for number in range(1, len(self.sub_attacks))]
            if None in records:
                raise ValueError(f"A record of block {block} is missing in {self.state}. Run the evaluation again.")
            ids = np.concatenate([record.ids[record.fooled] for record in records if record])
            if len(ids):
                images = np.concatenate([record.x_adv for record in records if record and len(record.x_adv)])
                order = np.argsort([index[sample] for sample in ids.tolist()])
                yield ids[order], torch.from_numpy(images[order])

    def save(self, path: Path) -> None:
        """Write a JSON file atomically.

        Raises:
            ValueError: The file cannot be written.
        """
        weights = self.weights and {**self.weights.content(), "weights": self.fingerprints.get("model")}
        content = {
            "name": self.name,
            "attack": dict(self.attack),
            "dataset": self.dataset,
            "class_names": list(self.class_names),
            "clean": _accuracy_content(self.clean),
            "robust": _accuracy_content(self.robust),
            **({"certified_robust": _accuracy_content(certified)} if (certified := self.certified_robust) else {}),
            "anytime": None if self.anytime is None else asdict(self.anytime),
            "confidence": 0.95,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "precision": self.precision,
            "total": self.total,
            "identity": self.identity,
            "flags": dict(self.flags),
            "calibration": dict(self.calibration),
            "checkpoint": weights,
            "fingerprints": dict(self.fingerprints),
            "sub_attacks": [asdict(summary) for summary in self.sub_attacks],
            "per_class": [{**row._asdict(), "name": self.class_name(row.label)} for row in self.per_class()],
            "per_pair": [row._asdict() for row in self.per_pair()] or None,
            "outcome_codes": {outcome.name.lower(): int(outcome) for outcome in Outcome},
            "outcomes": "".join(map(str, self.outcomes.tolist())),
            **{name: getattr(self, name).tolist() or None for name in _PER_SAMPLE},
            **({"certified": self.certified.tolist()} if len(self.certified) else {}),
        }
        # One line for each field, since arrays can have 10,000 elements.
        fields = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
        with explained(path, "a result"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, f"{{\n{fields}\n}}\n".encode())

    @classmethod
    def load(cls, path: Path) -> "EvaluationResult":
        """Read the output of `save`, of this version or an earlier one.

        Raises:
            ValueError: The file has other content.
        """
        try:
            result = cls._of_content(with_new_names(parse_json(path.read_text())))
            _ = result.robust, result.fingerprints.items()
            _ = float(result.seconds), float(result.attack.get("eps_value", "nan"))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must be a result of `lightning-paf test`, got {error!r}. Pass a JSON file that it wrote."
            ) from error
        return result

    @classmethod
    def _of_content(cls, content: Mapping[str, Any]) -> "EvaluationResult":
        names = ("seed", "precision", "total", "identity", "fingerprints", "dataset", "flags", "calibration")
        arrays: dict[str, Any] = {
            name: np.array(list(content[name]), kind)
            for name, kind in {**_PER_SAMPLE, "certified": np.bool_}.items()
            if content.get(name) is not None
        }
        outcomes = np.array([int(code) for code in content["outcomes"]], dtype=np.uint8)
        if other := [name for name, array in arrays.items() if array.shape != outcomes.shape]:
            raise ValueError(f"{len(outcomes)} outcomes, but another number of {', '.join(other)}")
        return cls(
            content["name"],
            content["attack"],
            outcomes,
            content["seconds"],
            sub_attacks=tuple(SubAttackSummary(**with_new_names(part)) for part in content.get("sub_attacks", ())),
            class_names=tuple(content.get("class_names", ())),
            weights=WeightsOrigin.of_content(content.get("checkpoint")),
            **{name: content[name] for name in names if name in content},
            **arrays,
        )

    def _count(self, outcome: Outcome) -> int:
        return int(np.count_nonzero(self.outcomes == outcome))


def _flags(
    adversarial: NDArray[np.int64], sub_attacks: Sequence[SubAttackSummary], blocks: Sequence[Sequence[Record]]
) -> dict[str, str]:
    """Signs of an unreliable result in the records."""
    robust = {part.label: part.attacked - part.fooled for part in sub_attacks if part.label != CERTIFICATE}
    not_finite = sum(int(record.note.get("gradients_not_finite", 0)) for records in blocks for record in records)
    flags = masking_flag(robust, len(adversarial)) | gradient_flag(not_finite, sum(s.backward for s in sub_attacks))
    if undefined := int(np.count_nonzero(adversarial == NO_PREDICTION)):
        flags["finite-outputs"] = (
            f"The logits of {undefined} samples are not finite; these count as misclassified. Look for an overflow in "
            "the model."
        )
    return flags


def _accuracy_content(accuracy: Accuracy) -> dict[str, Any]:
    return {**asdict(accuracy), "accuracy": accuracy.value}


def with_new_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a result file with the keys of this version."""
    return {_OLD_NAMES.get(name, name): value for name, value in content.items()}
