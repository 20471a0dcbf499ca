"""Synthetic images on disk."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.checks import check_classes
from lightning_paf.data.readers.folder import open_folder
from lightning_paf.data.readers.npy import MappedRows, RowReader, SingleRows
from lightning_paf.data.sources import ImageSet

MAPPED_SHARDS = 50  # two files each, of the 256 (macOS) or 1,024 (most of Linux) that a process may have open


class SyntheticPool:
    """Images and labels of one or several folders, one after the other.

    Folders are converted archives or pools of many shards; no shard is opened before one of its images is drawn. All
    ranks and workers of a node share one copy of what they read, in the page cache: 50 million CIFAR-sized images are
    154 GB. For the same reason a pickle holds the names and sizes of the files, never their content.

    Args:
        folders: Folders with `manifest.json`, or with `image.npy` uint8 (N, H, W, C) and `label.npy` int64 (N,).

    Raises:
        ValueError: A folder has not been converted, or what it holds is damaged.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self._opened = [open_folder(folder) for folder in folders]
        self._shards = [shard for opened in self._opened for shard in opened.shards]
        self._starts = np.cumsum([0, *(shard.image.shape[0] for shard in self._shards)])
        self._reader = choose_reader(len(self._shards), sum(shard.image.size for shard in self._shards))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def check(self, like: Sequence[int], num_classes: int) -> None:
        """Check that the pool can stand beside real images.

        Args:
            like: Shape (…, H, W, C) of the real images.
            num_classes: Every label 0 .. num_classes - 1 must occur, somewhere in the pool.

        Raises:
            ValueError: It cannot.
        """
        counts = np.zeros(num_classes, np.int64)
        for opened in self._opened:
            counts += opened.count_classes(like, num_classes)
        check_classes(counts, ", ".join(map(str, self.folders)))

    def fetch(self, index: NDArray[np.int64], batch: ImageSet, places: NDArray[np.int64]) -> None:
        """Read images by number into a batch, in ascending order of their place on disk.

        Args:
            index: Numbers (N,) from 0 to len(pool) - 1, in any order, repeated or not.
            batch: Receives images and labels.
            places: Where in the batch each of them goes (N,).

        Raises:
            ValueError: A file has changed since the pool was opened.
        """
        ascending = np.argsort(index)
        index, places = index[ascending], places[ascending]
        shards, firsts = np.unique(np.searchsorted(self._starts, index, side="right") - 1, return_index=True)
        for number, (first, end) in zip(shards.tolist(), pairwise([*firsts.tolist(), len(index)]), strict=True):
            shard, rows = self._shards[number], index[first:end] - self._starts[number]
            batch.images[places[first:end]] = self._reader.read(shard.image, rows)
            batch.labels[places[first:end]] = self._reader.read(shard.label, rows)


def choose_reader(shards: int, size: int) -> RowReader:
    """Choose how rows at random places are read.

    Memory maps are fastest while every file stays mapped and every page in memory, and fill the memory quickly, because
    the system reads ahead at each page that is missing. Where the files are larger than the memory, most of that is
    read in vain: a twentieth of the images a second, measured; where they are many, a map costs more than it gives.

    Args:
        shards: Number of pairs of files.
        size: Bytes of all of them.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return MappedRows() if shards <= MAPPED_SHARDS and size <= memory / 2 else SingleRows()
