"""Datasets that fetch a whole batch at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_paf.data.sources import ImageSet
from lightning_paf.data.synthetic.pool import SyntheticPool


class RawBatch(NamedTuple):
    """A batch on its way to the device, before it becomes floats.

    Args:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        synthetic: bool (N,), which images are synthetic; None in evaluation, where nothing is augmented.
    """

    images: Tensor
    labels: Tensor
    synthetic: Tensor | None


class EvalDataset(Dataset[RawBatch]):
    """Images in memory, in their order.

    Args:
        data: The images.
    """

    def __init__(self, data: ImageSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> RawBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> RawBatch:
        """Fetch the batch of these numbers."""
        part = self.data.take(np.asarray(indices))
        return RawBatch(torch.from_numpy(part.images), torch.from_numpy(part.labels), None)


class MixedDataset(Dataset[RawBatch]):
    """Real images, numbered from 0, and after them the synthetic ones.

    Args:
        real: Images in memory.
        pool: Images on disk, or None.
    """

    def __init__(self, real: ImageSet, pool: SyntheticPool | None) -> None:
        self.real = real
        self.pool = pool

    @property
    def real_size(self) -> int:
        """Number of real images."""
        return len(self.real)

    @property
    def synthetic_size(self) -> int:
        """Number of synthetic images."""
        return len(self.pool) if self.pool is not None else 0

    def __len__(self) -> int:
        return self.real_size + self.synthetic_size

    def __getitem__(self, index: int) -> RawBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> RawBatch:
        """Fetch the batch of these numbers."""
        index = np.asarray(indices)
        synthetic = index >= self.real_size
        batch = ImageSet(np.empty((len(index), *self.real.images.shape[1:]), np.uint8), np.empty(len(index), np.int64))
        places = np.flatnonzero(~synthetic)
        batch.images[places] = self.real.images[index[places]]
        batch.labels[places] = self.real.labels[index[places]]
        if self.pool is not None:
            places = np.flatnonzero(synthetic)
            self.pool.fetch(index[places] - self.real_size, batch, places)
        return RawBatch(*map(torch.from_numpy, (batch.images, batch.labels, synthetic)))


def as_fetched(batch: Any) -> Any:
    """Collate nothing: `__getitems__` has already returned a batch."""
    return batch
