"""Outcomes of samples, by block, class and target."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_paf.evaluation.state import Record

NOT_FOOLED = -1
CERTIFICATE = "certificate"
"""Label of the records of certificates."""
CERTIFIED = "certified"
"""Key of the certified samples in the note of such a record."""


class Outcome(IntEnum):
    """Outcome of one sample; ranks combine by the maximum."""

    NOT_EVALUATED = 0
    ROBUST = 1
    FOOLED = 2
    MISCLASSIFIED = 3


@dataclass(frozen=True, eq=False)
class BlockResult:
    """Result of one block, from its records so far.

    Attributes:
        labels: Labels of the samples, (n,) int64.
        predictions: Class of each clean image, (n,) int64; -1 where the logits are not finite.
        adversarial: Class of each adversarial image if there is one, else of the clean image; (n,) int64.
        fooled_by: Index of the sub-attack that fooled the model, (n,) int8; `NOT_FOOLED` for none.
        certified: Mask of the samples with a certificate, which are not attacked, (n,).
    """

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    adversarial: NDArray[np.int64]
    fooled_by: NDArray[np.int8]
    certified: NDArray[np.bool_]

    @classmethod
    def of(cls, records: Sequence[Record]) -> "BlockResult":
        """Combine the records of one block, beginning with `clean`."""
        clean = records[0]
        adversarial, fooled_by = clean.predictions.copy(), np.full(len(clean.ids), NOT_FOOLED, np.int8)
        for record in records[1:]:
            attacked = np.flatnonzero(np.isin(clean.ids, record.ids))
            fooled_by[attacked[record.fooled]] = record.sub_attack
            adversarial[attacked] = record.predictions
        certified = [sample for record in records for sample in record.note.get(CERTIFIED, ())]
        return cls(clean.labels, clean.predictions, adversarial, fooled_by, np.isin(clean.ids, certified))

    @property
    def robust(self) -> NDArray[np.bool_]:
        """Mask of the samples that are robust to all sub-attacks so far, (n,)."""
        return np.equal(self.adversarial, self.labels)

    @property
    def open(self) -> NDArray[np.bool_]:
        """Mask of the samples that are neither fooled nor certified so far, (n,)."""
        return self.robust & ~self.certified

    @property
    def outcomes(self) -> NDArray[np.uint8]:
        """`Outcome` of each sample, (n,)."""
        attacked = np.where(self.robust, Outcome.ROBUST, Outcome.FOOLED)
        return np.where(self.predictions == self.labels, attacked, Outcome.MISCLASSIFIED).astype(np.uint8)


class ClassRow(NamedTuple):
    """Counts of one class: evaluated samples, correctly classified ones, robust ones."""

    label: int
    evaluated: int
    clean: int
    robust: int


class PairRow(NamedTuple):
    """Counts of a true class and a target: attacked samples, fooled ones."""

    label: int
    target: int
    attacked: int
    fooled: int

    @property
    def rate(self) -> float:
        """Success rate; NaN without a sample."""
        return self.fooled / self.attacked if self.attacked else float("nan")
