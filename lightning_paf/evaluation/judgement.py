"""What became of each sample, and what it took."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_paf.evaluation.identity import Header
from lightning_paf.evaluation.record import Record
from lightning_paf.evaluation.result import StageSummary, Verdict
from lightning_paf.evaluation.state import Ledger, MemoryLedger
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy

NOT_BROKEN = -1


class ClassRow(NamedTuple):
    """Counts of one class.

    Attributes:
        label: The class.
        judged: Samples of it.
        clean: Those classified correctly.
        robust: Those classified correctly also under the attack.
    """

    label: int
    judged: int
    clean: int
    robust: int


@dataclass(frozen=True, eq=False)
class Findings:
    """What the records so far say of some samples, without the images.

    Attributes:
        ids: Samples, (n,) int64.
        labels: Their labels, (n,) int64.
        predictions: Class on the image, (n,) int64; -1 where the logits are not finite.
        adversarial: Class on the adversarial image, and on the image itself where there is none; (n,) int64.
        broken_by: Stage whose adversarial image is misclassified, (n,) int8, as an index into `stages`; -1 for none.
        stages: Summary of each stage, first the clean images.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    adversarial: NDArray[np.int64]
    broken_by: NDArray[np.int8]
    stages: tuple[StageSummary, ...]

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Findings":
        """Put the records of one block together, in the order of their stages; at least that of the clean images."""
        clean = records[0]
        adversarial = clean.predictions.copy()
        broken_by = np.full(len(clean.ids), NOT_BROKEN, np.int8)
        for record in records[1:]:
            met = np.flatnonzero(adversarial == clean.labels)
            broken_by[met[record.fooled]] = record.stage
            adversarial[met] = record.predictions
        stages = tuple(
            StageSummary(
                record.label,
                len(record.ids),
                int(np.count_nonzero(record.fooled)),
                record.forward,
                record.backward,
                record.exact,
                float(record.note.get("seconds", 0.0)),
            )
            for record in records
        )
        return cls(clean.ids, clean.labels, clean.predictions, adversarial, broken_by, stages)

    @property
    def standing(self) -> NDArray[np.bool_]:
        """Which samples no stage so far has broken, (n,)."""
        return np.equal(self.adversarial, self.labels)


@dataclass(frozen=True, eq=False)
class Judgement(Findings):
    """The verdict on every sample.

    Attributes:
        total: Samples asked for; more than are judged where a stop rule ended it.
        header: What the evaluation was about: fingerprints, attack, seed, precision.
        ledger: Holds the adversarial images.
        blocks: Number of blocks judged.
    """

    total: int
    header: Header
    ledger: Ledger | MemoryLedger = field(repr=False)
    blocks: int

    @classmethod
    def joined(
        cls, parts: Sequence[Findings], total: int, header: Header, ledger: Ledger | MemoryLedger
    ) -> "Judgement":
        """The first blocks together.

        Args:
            parts: Findings of each block, from the first on, all stages.
            total: Samples asked for.
            header: What the evaluation was about.
            ledger: Where the records are.
        """
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.predictions for part in parts]),
            np.concatenate([part.adversarial for part in parts]),
            np.concatenate([part.broken_by for part in parts]),
            tuple(_summed(stages) for stages in zip(*(part.stages for part in parts), strict=True)),
            total,
            header,
            ledger,
            len(parts),
        )

    @property
    def verdicts(self) -> NDArray[np.uint8]:
        """A `Verdict` for each sample, (n,) uint8."""
        right = self.predictions == self.labels
        attacked = np.where(self.standing, Verdict.ROBUST, Verdict.BROKEN)
        return np.where(right, attacked, Verdict.CLEAN_ERROR).astype(np.uint8)

    @property
    def judged(self) -> int:
        """Number of samples judged."""
        return len(self.ids)

    @property
    def clean(self) -> Accuracy:
        """Accuracy on the images, with its 95 % interval."""
        return exact_accuracy(int(np.count_nonzero(self.predictions == self.labels)), self.judged)

    @property
    def robust(self) -> Accuracy:
        """Accuracy under the attack, with its 95 % interval; a clean error counts as broken."""
        return exact_accuracy(int(np.count_nonzero(self.standing)), self.judged)

    def per_class(self) -> list[ClassRow]:
        """Counts of each class that occurs, in order."""
        rows = []
        for label in np.unique(self.labels):
            mine = self.verdicts[self.labels == label]
            right = int(np.count_nonzero(mine != Verdict.CLEAN_ERROR))
            rows.append(ClassRow(int(label), len(mine), right, int(np.count_nonzero(mine == Verdict.ROBUST))))
        return rows

    def examples(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Ids (k,) and adversarial images (k, C, H, W) of the broken samples, block by block, in the order of `ids`.

        Raises:
            ValueError: A record has been lost since.
        """
        place = {sample: number for number, sample in enumerate(self.ids.tolist())}
        for block in range(self.blocks):
            records = [self._record(block, stage) for stage in range(1, len(self.stages))]
            ids = np.concatenate([record.ids[record.fooled] for record in records])
            if len(ids):
                images = np.concatenate([record.x_adv for record in records if len(record.x_adv)])
                order = sorted(range(len(ids)), key=lambda i: place[int(ids[i])])
                yield ids[order], torch.from_numpy(images[order])

    def _record(self, block: int, stage: int) -> Record:
        record = self.ledger.read(block, stage)
        if record is None:
            raise ValueError(
                f"{self.ledger} has lost the record of block {block}, stage {stage}. Judge again with the same ledger."
            )
        return record


def _summed(parts: tuple[StageSummary, ...]) -> StageSummary:
    """One stage over several blocks."""
    names = ("attacked", "broken", "forward", "backward", "exact", "seconds")
    return StageSummary(parts[0].label, *(sum(getattr(part, name) for part in parts) for name in names))
