"""Synthetic images on disk."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.checks import check_classes, check_images, check_label_header, check_labels, check_same_size
from lightning_paf.data.readers.folder import array_files
from lightning_paf.data.readers.npy import MappedFiles, NpyFile, inspect_npy
from lightning_paf.data.sources import ImageSet


class SyntheticPool:
    """Images and labels of all files in one or more folders, indexed as one array.

    A file is mapped into memory when one of its images is drawn, so all ranks and workers of a node share one copy in
    the page cache: 50 million CIFAR-sized images are 154 GB. A pickle holds the names and sizes of the files only.

    Args:
        folders: Folders with `image.npy` uint8 (N, H, W, C) and `label.npy` integers (N,), or with several such pairs
            `NAME.image.npy` + `NAME.label.npy`.

    Raises:
        ValueError: A folder has not been converted, or a file is damaged.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self._files = [pair for folder in folders for pair in _inspect_folder(folder)]
        self._starts = np.cumsum([0, *(image.shape[0] for image, _ in self._files)])
        self._maps = MappedFiles()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def check(self, like: Sequence[int], num_classes: int) -> None:
        """Check that the images can be mixed with real ones; reads all labels.

        Args:
            like: Shape (…, H, W, C) of the real images.
            num_classes: Labels must be 0 .. num_classes - 1, and each must occur in some file.

        Raises:
            ValueError: The images cannot be mixed with real ones.
        """
        counts = np.zeros(num_classes, np.int64)
        for image, label in self._files:
            check_images(image, like[-1], image.path)
            check_same_size(image.shape, like, image.path)
            check_label_header(label, image.shape[0], label.path)
            for labels in label.chunks():
                check_labels(labels, num_classes, label.path)
                counts += np.bincount(labels.astype(np.int64, copy=False), minlength=num_classes)
        check_classes(counts, ", ".join(map(str, self.folders)))

    def fetch(self, index: NDArray[np.int64], batch: ImageSet, rows: NDArray[np.int64]) -> None:
        """Read images into a batch, in the order of their positions on disk.

        Args:
            index: Indices (N,) from 0 to len(pool) - 1, in any order, with or without repetition.
            batch: Batch to write images and labels into.
            rows: Rows of the batch, one for each index (N,).

        Raises:
            ValueError: A file has changed since the pool was opened.
        """
        ascending = np.argsort(index)
        index, rows = index[ascending], rows[ascending]
        files, firsts = np.unique(np.searchsorted(self._starts, index, side="right") - 1, return_index=True)
        for number, (first, end) in zip(files.tolist(), pairwise([*firsts.tolist(), len(index)]), strict=True):
            inside = index[first:end] - self._starts[number]
            image, label = self._files[number]
            batch.images[rows[first:end]] = self._maps.read(image, inside)
            batch.labels[rows[first:end]] = self._maps.read(label, inside)


def _inspect_folder(folder: Path) -> list[tuple[NpyFile, NpyFile]]:
    files = array_files(folder)
    if not files:
        raise ValueError(f"{folder}: not converted yet. Call prepare_data() before setup(), as the trainer does.")
    return [(inspect_npy(image), inspect_npy(label)) for image, label in files]
