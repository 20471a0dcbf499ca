"""Episodes of few-shot segmentation, drawn from the slices of volumes."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_paf.data.readers.volumes import IGNORED, Subject

EPISODES = 50_000
"""Number of different training episodes, determined by index and seed."""


class EpisodeBatch(NamedTuple):
    """A batch of E episodes with W ways and S shots.

    Masks are 0 for background, 1 to W for the ways, 255 for ignored pixels.

    Args:
        support: Images (E, W, S, C, H, W); those of a way hold its class.
        support_masks: int64 (E, W, S, H, W).
        query: Images (E, C, H, W).
        query_mask: int64 (E, H, W).
        numbers: Index in the dataset (E,), int64.
    """

    support: Tensor
    support_masks: Tensor
    query: Tensor
    query_mask: Tensor
    numbers: Tensor

    def separate(self) -> "list[EpisodeBatch]":
        """Split into batches of one episode."""
        return [EpisodeBatch(*parts) for parts in zip(*(torch.split(part, 1) for part in self), strict=True)]


class _Slices:
    """The slices of several volumes, and where each class occurs."""

    def __init__(self, subjects: Sequence[Subject], classes: Sequence[int], ways: int, shots: int, part: str) -> None:
        self.images = np.concatenate([subject.images for subject in subjects])
        self.masks = np.concatenate([subject.masks for subject in subjects])
        self.subject = np.repeat(np.arange(len(subjects)), [len(subject.images) for subject in subjects])
        self.names = [subject.name for subject in subjects]
        self.classes, self.ways, self.shots = list(classes), ways, shots
        least = max(1, self.masks[0].size // 500)  # smaller cross-sections make no prototype
        self.present = {c: np.flatnonzero((self.masks == c).sum((1, 2)) >= least) for c in classes}
        for label, rows in self.present.items():
            owners = np.bincount(self.subject[rows], minlength=len(subjects))
            if (others := int(owners.sum() - owners.max())) < shots:
                raise ValueError(
                    f"Class {label} must be on at least {shots} slices of the {part} volumes, besides those of any one "
                    f"volume, got {others}. Pass other --data.{part}_classes, a smaller --data.shots, or more volumes."
                )

    def drawn(self, rng: np.random.Generator, label: int, subject: int) -> NDArray[np.int64]:
        """Draw `shots` slices with a class, of other volumes than `subject`."""
        rows = self.present[label]
        return rng.choice(rows[self.subject[rows] != subject], self.shots, replace=False)

    def batch(
        self, episodes: Sequence[tuple[NDArray[np.int64], int, Sequence[int]]], numbers: Sequence[int]
    ) -> EpisodeBatch:
        """Fetch episodes of support rows (W, S), query row and classes (W,)."""
        rows, queries = np.stack([support for support, _, _ in episodes]), [query for _, query, _ in episodes]
        tables = np.zeros((len(episodes), IGNORED + 1), np.int64)
        tables[:, IGNORED] = IGNORED
        for table, (_, _, classes) in zip(tables, episodes, strict=True):
            table[list(classes)] = np.arange(1, len(classes) + 1)
        found = (
            self.images[rows].transpose(0, 1, 2, 5, 3, 4),
            np.stack([table[self.masks[row]] for table, row in zip(tables, rows, strict=True)]),
            self.images[queries].transpose(0, 3, 1, 2),
            np.stack([table[self.masks[query]] for table, query in zip(tables, queries, strict=True)]),
            np.asarray(numbers, np.int64),
        )
        return EpisodeBatch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in found))


class Episodes(Dataset[EpisodeBatch]):
    """Random episodes for training, the same for any number of processes.

    The classes of an episode are drawn first, then a query with one of them, then the support from other volumes.

    Args:
        subjects: Volumes.
        classes: Labels to draw from.
        ways: Classes of an episode.
        shots: Support images of each class.
        seed: Seed of all episodes.

    Raises:
        ValueError: A class is on too few slices.
    """

    real_size, synthetic_size, changing = EPISODES, 0, False  # for `MixedSampler`

    def __init__(self, subjects: Sequence[Subject], classes: Sequence[int], ways: int, shots: int, seed: int) -> None:
        self.slices, self.seed = _Slices(subjects, classes, ways, shots, "train"), seed

    def __len__(self) -> int:
        return EPISODES

    def __getitem__(self, index: int) -> EpisodeBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> EpisodeBatch:
        """Fetch the batch of these indices."""
        return self.slices.batch([self._drawn(index) for index in indices], indices)

    def fingerprints(self) -> dict[str, str]:
        """Return a hash of all slices and masks."""
        return {"real": hashlib.sha256(self.slices.images.tobytes() + self.slices.masks.tobytes()).hexdigest()}

    def _drawn(self, index: int) -> tuple[NDArray[np.int64], int, list[int]]:
        slices, rng = self.slices, np.random.default_rng([self.seed, index])
        classes = rng.choice(slices.classes, slices.ways, replace=False).tolist()
        query = int(rng.choice(slices.present[rng.choice(classes)]))
        support = np.stack([slices.drawn(rng, label, slices.subject[query]) for label in classes])
        return support, query, classes


class QueryDataset(Dataset[EpisodeBatch]):
    """All slices of every volume as queries, for each class of the volume.

    The class of a query is the first way; further ways are other classes. The support of a volume and class is drawn
    from other volumes once, so that all slices have the same.

    Args:
        subjects: Volumes.
        classes: Labels to evaluate.
        ways: Classes of an episode.
        shots: Support images of each class.
        seed: Seed of the support.
        part: `val` or `test`, for errors.

    Attributes:
        pairs: Name of the volume and label, for each volume and class.
        pair_of: Index in `pairs` of each query, int64.

    Raises:
        ValueError: A class is on too few slices.
    """

    def __init__(
        self, subjects: Sequence[Subject], classes: Sequence[int], ways: int, shots: int, seed: int, part: str
    ) -> None:
        slices = self.slices = _Slices(subjects, classes, ways, shots, part)
        found = [(c, number) for c in classes for number in np.unique(slices.subject[slices.present[c]]).tolist()]
        self.pairs = [(slices.names[number], c) for c, number in found]
        self._queries, self._support = list[tuple[int, int]](), list[tuple[NDArray[np.int64], list[int]]]()
        for pair, (c, number) in enumerate(found):
            rng = np.random.default_rng([seed, pair])
            others = np.array([label for label in classes if label != c], np.int64)
            labels = [c, *map(int, rng.permutation(others)[: ways - 1])]
            self._support.append((np.stack([slices.drawn(rng, label, number) for label in labels]), labels))
            self._queries += [(pair, int(row)) for row in np.flatnonzero(slices.subject == number)]
        self.pair_of = torch.tensor([pair for pair, _ in self._queries])

    def __len__(self) -> int:
        return len(self._queries)

    def __getitem__(self, index: int) -> EpisodeBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> EpisodeBatch:
        """Fetch the batch of these indices."""
        queries = [self._queries[index] for index in indices]
        episodes = [(self._support[pair][0], row, self._support[pair][1]) for pair, row in queries]
        return self.slices.batch(episodes, indices)
