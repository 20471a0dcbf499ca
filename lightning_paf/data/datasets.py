"""Datasets that fetch a batch in one call."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lightning_paf.data.sources import ImageSet
from lightning_paf.data.synthetic.pool import SyntheticPool

HASHED = 100


class RawBatch(NamedTuple):
    """A batch before it is augmented and converted to floats on the device.

    Args:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        synthetic: bool (N,), True for synthetic images; None in evaluation, where nothing is augmented.
    """

    images: Tensor
    labels: Tensor
    synthetic: Tensor | None


class EvalDataset(Dataset[RawBatch]):
    """Images in memory, in their order."""

    def __init__(self, data: ImageSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> RawBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> RawBatch:
        """Fetch the batch of these indices."""
        part = self.data.take(np.asarray(indices))
        return RawBatch(torch.from_numpy(part.images), torch.from_numpy(part.labels), None)


class MixedDataset(Dataset[RawBatch]):
    """Real images, indexed from 0, followed by the synthetic ones.

    Args:
        real: Images in memory.
        pool: Images on disk, or None.
    """

    def __init__(self, real: ImageSet, pool: SyntheticPool | None) -> None:
        self.real = real
        self.pool = pool
        self.real_size, self.synthetic_size = len(real), len(pool) if pool is not None else 0

    def __len__(self) -> int:
        return self.real_size + self.synthetic_size

    @property
    def changing(self) -> bool:
        """Whether the images depend on the epoch."""
        return self.real.changing

    def __getitem__(self, index: int) -> RawBatch:
        return self.__getitems__([index])

    def fingerprints(self) -> dict[str, str]:
        """Return a hash of the real and one of the synthetic images, from a sample.

        Each covers the number of images, and `HASHED` evenly spread ones.
        """
        parts = {"real": (0, self.real_size), "synthetic": (self.real_size, self.synthetic_size)}
        return {name: self._fingerprint(first, size) for name, (first, size) in parts.items() if size}

    def _fingerprint(self, first: int, size: int) -> str:
        sample = self.__getitems__((first + np.linspace(0, size - 1, HASHED).astype(np.int64)).tolist())
        return hashlib.sha256(f"{size}".encode() + sample.images.numpy().data + sample.labels.numpy().data).hexdigest()

    def __getitems__(self, indices: Sequence[int]) -> RawBatch:
        """Fetch the batch of these indices.

        The index plus `epoch * len(self)` is the image in that epoch.
        """
        epoch, index = np.divmod(np.asarray(indices), len(self))
        synthetic = index >= self.real_size
        batch = ImageSet(np.empty((len(index), *self.real.images.shape[1:]), np.uint8), np.empty(len(index), np.int64))
        rows = np.flatnonzero(~synthetic)
        batch.images[rows] = self.real.drawn(index[rows], epoch[rows])
        batch.labels[rows] = self.real.labels[index[rows]]
        if self.pool is not None:
            rows = np.flatnonzero(synthetic)
            self.pool.fetch(index[rows] - self.real_size, batch, rows)
        return RawBatch(*map(torch.from_numpy, (batch.images, batch.labels, synthetic)))


def as_fetched(batch: RawBatch) -> RawBatch:
    """Return a batch unchanged, in place of collating: `__getitems__` returns batches.

    In a worker process it is moved to shared memory here. Otherwise this happens in a thread whose errors reach nobody,
    and the main process waits forever.
    """
    if get_worker_info() is not None:
        for part in batch:
            if part is not None:
                part.share_memory_()  # type: ignore[no-untyped-call]
    return batch
