"""Which images a rank sees, in which order.

Both samplers are `DistributedSampler`s, so that Lightning keeps them as they are and calls `set_epoch`.
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
    """Return the number of real images in a global batch: the share of it, rounded."""
    return round(real_fraction * batch_size)


def batches_per_epoch(real_size: int, batch_size: int, real_fraction: float, epoch: Literal["real_pass"] | int) -> int:
    """Return the number of global batches in an epoch.

    Args:
        real_size: Number of real training images.
        batch_size: Images in a global batch.
        real_fraction: Share of real ones.
        epoch: `real_pass`: enough batches to see every real image once; a number: that many images, real and synthetic.
    """
    if epoch == "real_pass":
        return math.ceil(real_size / real_per_batch(batch_size, real_fraction))
    return math.ceil(epoch / batch_size)


class MixedSampler(DistributedSampler[int]):
    """Batches with an exact share of real images, whatever the number of ranks.

    All ranks work out the same global batches from (seed, epoch) and each takes its slice of every one, so batches
    differ in nothing but their slicing between 1 and 64 ranks. Real images are drawn without replacement: none comes a
    second time before all have come. When the epoch needs more, a second shuffled pass begins, so the last batch of a
    `real_pass` is topped up with images that have been seen, and no batch is short. Synthetic images are drawn
    with replacement; their number per epoch may exceed the pool or be a small part of it.

    Args:
        dataset: Real images first, synthetic ones after them.
        batch_size: Images in a global batch, a multiple of `num_replicas`; the loader of a rank takes its part of them.
        real_per_batch: How many of them are real, epoch by epoch; the last number holds for all epochs after it.
        batches: Global batches per epoch.
        num_replicas: Number of ranks.
        rank: This rank.
        seed: With the epoch, determines everything.
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
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed=seed)
        self.real_size, self.synthetic_size = dataset.real_size, dataset.synthetic_size
        self.batch_size = batch_size
        self.real_per_batch = real_per_batch
        self.batches = batches
        self._resumed = (0, 0)

    def __len__(self) -> int:
        return self.batches * self.batch_size // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        share = self.batch_size // self.num_replicas
        for batch in self.global_batches()[self.first_batch :]:
            yield from batch[self.rank * share : (self.rank + 1) * share].tolist()

    def resume(self, epoch: int, batch: int) -> None:
        """Leave out the first `batch` global batches of this epoch, and nothing of others."""
        self._resumed = (epoch, batch)

    @property
    def first_batch(self) -> int:
        """The global batch that the present epoch begins with."""
        epoch, batch = self._resumed
        return batch if epoch == self.epoch else 0

    def global_batches(self) -> NDArray[np.int64]:
        """Return the numbers of this epoch's images, one row for each global batch (batches, batch_size)."""
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn = self.batch_size - self.real_per_batch[min(self.epoch, len(self.real_per_batch) - 1)]
        batches = np.empty((self.batches, self.batch_size), np.int64)
        batches[:, drawn:] = _passes(rng, self.real_size, batches[:, drawn:].size).reshape(self.batches, -1)
        first, end = self.real_size, self.real_size + self.synthetic_size
        batches[:, :drawn] = rng.integers(first, end, (self.batches, drawn))
        return rng.permuted(batches, axis=1, out=batches)


def _passes(rng: np.random.Generator, size: int, total: int) -> NDArray[np.int64]:
    """Number `total` images: shuffled passes over `size` of them, one after the other."""
    passes = [rng.permutation(size) for _ in range(math.ceil(total / size))]
    return np.concatenate([np.empty(0, np.int64), *passes])[:total]


class ShardSampler(DistributedSampler[int]):
    """Every `num_replicas`-th image, beginning with number `rank`: each is seen once, none is added as padding.

    Args:
        dataset: What is divided; 11 images on 2 ranks are 6 and 5.
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


def even_batch_size(size: int, num_replicas: int, wanted: int) -> int:
    """Choose a batch size with which all shards have the same number of batches, as collectives in each batch need.

    Shards differ by one image at most, so it is enough that the smaller ones do not fill their last batch.

    Args:
        size: Number of images, not less than `num_replicas`.
        num_replicas: Number of ranks.
        wanted: Batch size of a rank that is aimed at.

    Returns:
        The largest fitting one up to `wanted`, or the smallest above.
    """
    smallest, rest = divmod(size, num_replicas)
    if not rest:
        return wanted
    candidates = chain(range(wanted, 1, -1), count(wanted + 1))
    return next(b for b in candidates if smallest % b)
