"""What one evaluation found, sample by sample, and its file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.evaluation.stopping import Interval, anytime_interval
from lightning_paf.runs.weights_origin import WeightsOrigin
from lightning_paf.utils.files import write_whole

if TYPE_CHECKING:
    from lightning_paf.evaluation.judgement import Judgement


class Verdict(IntEnum):
    """Fate of one sample; the larger, the worse, so that ranks combine by the maximum."""

    NOT_JUDGED = 0
    ROBUST = 1
    BROKEN = 2
    CLEAN_ERROR = 3


@dataclass(frozen=True)
class StageSummary:
    """What one stage did.

    Attributes:
        label: `clean`, or the attack's label.
        attacked: Samples that it met.
        broken: Those that were misclassified after it.
        forward: Images passed forward by the search.
        backward: Images passed backward.
        exact: Images passed forward by the untouched model in float32.
        seconds: Time, summed over workers.
    """

    label: str
    attacked: int
    broken: int
    forward: int
    backward: int
    exact: int
    seconds: float


@dataclass(frozen=True)
class EvaluationResult:
    """Clean and robust accuracy of one model under one attack.

    Attributes:
        name: As in `test/acc_{name}`.
        attack: What the attack says of itself: class, norm, eps, steps, ...
        verdicts: One `Verdict` a sample; samples that were not judged are 0.
        seconds: Time inside the attack, summed over processes.
        ids: Number in the dataset of each entry of `verdicts`, int64; None where they are 0, 1, 2, ...
        labels: Label of each entry, int64; None where it is not known.
        broken_by: Index into `stages` of what broke each entry, int8, -1 for nothing; None where it is not known.
        stages: What each stage did, first `clean`; empty where it is not known.
        fingerprints: Of `model`, `network`, `data` and `code`.
        seed: Of the attack; None where it is not known.
        precision: Of the search; every success is confirmed in float32.
        total: Samples asked for, also where a stop rule ended the evaluation before; None where it is not known.
        weights: Origin of the evaluated weights; None where it is not known.
        identity: Fingerprint of everything that makes two evaluations the same one, but for the code; None where it is
            not known.
    """

    name: str
    attack: Mapping[str, Any]
    verdicts: npt.NDArray[np.uint8]
    seconds: float
    ids: npt.NDArray[np.int64] | None = None
    labels: npt.NDArray[np.int64] | None = None
    broken_by: npt.NDArray[np.int8] | None = None
    stages: tuple[StageSummary, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    precision: str = "fp32"
    total: int | None = None
    weights: WeightsOrigin | None = None
    identity: str | None = None

    @classmethod
    def from_judgement(
        cls, name: str, judgement: "Judgement", weights: WeightsOrigin | None = None, identity: str | None = None
    ) -> "EvaluationResult":
        """What `judge` found, without the images."""
        header = judgement.header
        return cls(
            name,
            header.attack,
            judgement.verdicts,
            sum(stage.seconds for stage in judgement.stages),
            judgement.ids,
            judgement.labels,
            judgement.broken_by,
            judgement.stages,
            {part: getattr(header, part) for part in ("model", "network", "data", "code")},
            header.seed,
            header.precision,
            judgement.total,
            weights,
            identity,
        )

    @property
    def judged(self) -> int:
        """Number of samples judged."""
        return int(np.count_nonzero(self.verdicts != Verdict.NOT_JUDGED))

    @property
    def clean(self) -> Accuracy:
        """Clean accuracy on the judged samples."""
        errors = int(np.count_nonzero(self.verdicts == Verdict.CLEAN_ERROR))
        return exact_accuracy(self.judged - errors, self.judged)

    @property
    def robust(self) -> Accuracy:
        """Accuracy under the attack on the judged samples; a clean error counts as broken."""
        return exact_accuracy(int(np.count_nonzero(self.verdicts == Verdict.ROBUST)), self.judged)

    @property
    def anytime(self) -> Interval | None:
        """Where a stop rule has ended the evaluation: interval of the robust accuracy on all samples asked for.

        Unlike the one of `robust`, it stays valid although the end depended on what had been seen; see `sequential`.
        """
        if self.total is None or self.judged == self.total:
            return None
        return anytime_interval(self.robust.correct, self.judged, self.total)

    def save(self, path: Path) -> None:
        """Write a JSON file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "attack": dict(self.attack),
            "clean": {**asdict(self.clean), "accuracy": self.clean.value},
            "robust": {**asdict(self.robust), "accuracy": self.robust.value},
            "anytime": None if self.anytime is None else asdict(self.anytime),
            "confidence": 0.95,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "precision": self.precision,
            "total": self.total,
            "identity": self.identity,
            "checkpoint": None if self.weights is None else self._checkpoint(self.weights),
            "fingerprints": dict(self.fingerprints),
            "stages": [asdict(stage) for stage in self.stages],
            "verdict_codes": {verdict.name.lower(): int(verdict) for verdict in Verdict},
            "verdicts": "".join(str(int(verdict)) for verdict in self.verdicts),
            **{name: None if (array := getattr(self, name)) is None else array.tolist() for name in _PER_SAMPLE},
        }
        fields = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
        write_whole(path, f"{{\n{fields}\n}}\n".encode())  # a field a line: arrays of 10,000 do not fill the screen

    @classmethod
    def load(cls, path: Path) -> "EvaluationResult":
        """Read what `save` wrote, in this version or before there were ids, labels, stages and fingerprints."""
        content = json.loads(path.read_text())
        verdicts = np.array([int(code) for code in content["verdicts"]], dtype=np.uint8)
        arrays: dict[str, Any] = {
            name: None if content.get(name) is None else np.array(content[name], dtype=kind)
            for name, kind in _PER_SAMPLE.items()
        }
        return cls(
            content["name"],
            content["attack"],
            verdicts,
            content["seconds"],
            **arrays,
            stages=tuple(StageSummary(**stage) for stage in content.get("stages", ())),
            fingerprints=content.get("fingerprints", {}),
            seed=content.get("seed"),
            precision=content.get("precision", "fp32"),
            total=content.get("total"),
            weights=WeightsOrigin.of_content(content.get("checkpoint")),
            identity=content.get("identity"),
        )

    def _checkpoint(self, weights: WeightsOrigin) -> dict[str, Any]:
        return {**weights.content(), "weights": self.fingerprints.get("model")}


_PER_SAMPLE: Mapping[str, type] = {"ids": np.int64, "labels": np.int64, "broken_by": np.int8}
