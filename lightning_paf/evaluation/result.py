"""What one evaluation found, sample by sample, and its file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy


class Verdict(IntEnum):
    """Fate of one sample; the larger, the worse, so that ranks combine by the maximum."""

    NOT_JUDGED = 0
    ROBUST = 1
    BROKEN = 2
    CLEAN_ERROR = 3


@dataclass(frozen=True)
class EvaluationResult:
    """Clean and robust accuracy of one model under one attack.

    Attributes:
        name: As in `test/acc_{name}`.
        attack: What the attack says of itself: class, norm, eps, steps, ...
        verdicts: One `Verdict` a sample, in the order of the dataset; samples that were not judged are 0.
        seconds: Time inside the attack, summed over ranks.
    """

    name: str
    attack: Mapping[str, Any]
    verdicts: npt.NDArray[np.uint8]
    seconds: float

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

    def save(self, path: Path) -> None:
        """Write a JSON file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "attack": dict(self.attack),
            "clean": {**asdict(self.clean), "accuracy": self.clean.value},
            "robust": {**asdict(self.robust), "accuracy": self.robust.value},
            "confidence": 0.95,
            "seconds": round(self.seconds, 3),
            "verdict_codes": {verdict.name.lower(): int(verdict) for verdict in Verdict},
            "verdicts": "".join(str(int(verdict)) for verdict in self.verdicts),
        }
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "EvaluationResult":
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        verdicts = np.array([int(code) for code in content["verdicts"]], dtype=np.uint8)
        return cls(content["name"], content["attack"], verdicts, content["seconds"])
