"""Indices of the images of each rank.

Both samplers are `DistributedSampler`s, so that Lightning keeps them and calls `set_epoch`.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler

from lightning_paf.data.datasets import MixedDataset


def real_per_batch(batch_size: int, real_fraction: float) -> int:
    """Return the number of real images in a global batch, rounded."""
    return round(real_fraction * batch_size)


def batches_per_epoch(real_size: int, batch_size: int, real_fraction: float, epoch: Literal["real_pass"] | int) -> int:
    """Return the number of global batches in an epoch.

    Args:
        real_size: Number of real training images.
        batch_size: Images in a global batch.
        real_fraction: Fraction of real images in a batch.
        epoch: `real_pass`: enough batches to use every real image once; a number: that many images, real and synthetic.
    """
    if epoch == "real_pass":
        return math.ceil(real_size / real_per_batch(batch_size, real_fraction))
    return math.ceil(epoch / batch_size)


class MixedSampler(DistributedSampler[int]):
    """Batches with an exact fraction of real images, for any number of ranks.

    All ranks compute the same global batches from (seed, epoch), and each takes its slice of every one. Real images are
    drawn without replacement in shuffled passes: all have been used once before any is used again. The last batch of a
    `real_pass` is filled up from the next pass, so no batch is short. Synthetic images are drawn with replacement; an
    epoch may use more or fewer of them than the pool has.

    Args:
        dataset: Real images, followed by synthetic ones.
        batch_size: Images in a global batch, a multiple of `num_replicas`.
        real_per_batch: Number of real images in a batch, per epoch; later epochs use the last number.
        batches: Global batches per epoch.
        num_replicas: Number of ranks.
        rank: This rank.
        seed: Seed of the order, combined with the epoch.
        class_balanced: Draw real images with replacement, all classes equally often.
        changing: Add `epoch * len(dataset)` to the indices, for images that depend on the epoch.
    """

    def __init__(
        self,
        dataset: MixedDataset,
        *,
        batch_size: int,
        real_per_batch: Sequence[int],
        batches: int,
        num_replicas: int,
        rank: int,
        seed: int,
        class_balanced: bool = False,
        changing: bool = False,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed=seed)
        self.weights: NDArray[np.float64] | None = None
        if class_balanced:
            labels = dataset.real.labels
            self.weights = 1 / np.bincount(labels)[labels]
        self.real_size, self.synthetic_size = dataset.real_size, dataset.synthetic_size
        self.changing = changing
        self.batch_size = batch_size
        self.real_per_batch = real_per_batch
        self.batches = batches
        self._resumed = (0, 0)

    def __len__(self) -> int:
        return self.batches * self.batch_size // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        size = self.batch_size // self.num_replicas
        first = self.epoch * (self.real_size + self.synthetic_size) if self.changing else 0
        for batch in self._global_batches()[self.first_batch :]:
            yield from (batch[self.rank * size : (self.rank + 1) * size] + first).tolist()

    def resume(self, epoch: int, batch: int) -> None:
        """Skip the first `batch` global batches of this epoch, and none of other epochs."""
        self._resumed = (epoch, batch)

    @property
    def first_batch(self) -> int:
        """Index of the global batch with which the current epoch starts."""
        epoch, batch = self._resumed
        return batch if epoch == self.epoch else 0

    def _global_batches(self) -> NDArray[np.int64]:
        """Indices of this epoch's images (batches, batch_size), a row per global batch."""
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn = self.batch_size - self.real_per_batch[min(self.epoch, len(self.real_per_batch) - 1)]
        batches = np.empty((self.batches, self.batch_size), np.int64)
        batches[:, drawn:] = self._real(rng, batches[:, drawn:].size).reshape(self.batches, -1)
        first, end = self.real_size, self.real_size + self.synthetic_size
        batches[:, :drawn] = rng.integers(first, end, (self.batches, drawn))
        return rng.permuted(batches, axis=1, out=batches)

    def _real(self, rng: np.random.Generator, total: int) -> NDArray[np.int64]:
        if self.weights is None:
            return _passes(rng, self.real_size, total)
        return rng.choice(self.real_size, total, p=self.weights / self.weights.sum())


def _passes(rng: np.random.Generator, size: int, total: int) -> NDArray[np.int64]:
    """The first `total` indices of consecutive shuffled passes over `size` images."""
    passes = [rng.permutation(size) for _ in range(math.ceil(total / size))]
    return np.concatenate([np.empty(0, np.int64), *passes])[:total]


class ShardSampler(DistributedSampler[int]):
    """Every `num_replicas`-th image from index `rank` on, without padding.

    Args:
        dataset: Images to divide; 11 on 2 ranks are 6 and 5.
        num_replicas: Number of ranks.
        rank: This rank.
    """

    def __init__(self, dataset: Dataset[Any], num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self.shard = range(rank, len(dataset), num_replicas)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.shard)

    def __iter__(self) -> Iterator[int]:
        return iter(self.shard)


def even_batch_size(size: int, num_replicas: int, target: int) -> int:
    """Choose a batch size for which all shards have equally many batches.

    Collective operations in each batch require this. Shards differ by at most one image, so it suffices that the
    smaller ones do not fill their last batch.

    Args:
        size: Number of images, at least `num_replicas`.
        num_replicas: Number of ranks.
        target: Preferred batch size per rank.

    Returns:
        The largest possible size up to `target`, or the smallest above it.
    """
    smallest, rest = divmod(size, num_replicas)
    if not rest:
        return target
    candidates = chain(range(target, 1, -1), count(target + 1))
    return next(b for b in candidates if smallest % b)
