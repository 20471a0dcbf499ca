"""Synthetic images on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.checks import check_classes, check_images, check_label_header, check_labels, check_same_size
from lightning_paf.data.convert import IMAGE_FILE, LABEL_FILE, is_converted
from lightning_paf.data.sources import ImageSet

COUNTED_AT_ONCE = 2**20  # labels; np.bincount copies them


class SyntheticPool:
    """Memory-mapped images and labels, chained from one or several converted folders.

    All ranks and workers of a node share one copy, in the page cache: 50 million CIFAR-sized images are 154 GB. For
    the same reason only the folders are pickled, never the arrays.

    Args:
        folders: Folders with `image.npy` uint8 (N, H, W, C) and `label.npy` int64 (N,).

    Raises:
        ValueError: A folder has not been converted.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not is_converted(folder):
                raise ValueError(
                    f"{folder}: not converted yet. Call prepare_data() before setup(), as the trainer does."
                )
        self.folders = list(folders)
        self._images: list[NDArray[np.uint8]] = [np.load(folder / IMAGE_FILE, mmap_mode="r") for folder in folders]
        self._labels: list[NDArray[np.int64]] = [np.load(folder / LABEL_FILE, mmap_mode="r") for folder in folders]
        self._starts = np.cumsum([0, *(len(labels) for labels in self._labels)])

    def __getstate__(self) -> dict[str, Any]:
        return {"folders": self.folders}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folders"])  # type: ignore[misc]

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
        for folder, images, labels in zip(self.folders, self._images, self._labels, strict=True):
            check_images(images.shape, images.dtype, like[-1], str(folder))
            check_same_size(images.shape, like, str(folder))
            check_label_header(labels.shape, labels.dtype, len(images), str(folder))
            check_labels(labels, num_classes, str(folder))
            for start in range(0, len(labels), COUNTED_AT_ONCE):
                counts += np.bincount(labels[start : start + COUNTED_AT_ONCE], minlength=num_classes)
        check_classes(counts, ", ".join(map(str, self.folders)))

    def fetch(self, index: NDArray[np.int64], batch: ImageSet, places: NDArray[np.int64]) -> None:
        """Read images by number into a batch, in ascending order of their place on disk.

        Args:
            index: Numbers (N,) from 0 to len(pool) - 1, in any order, repeated or not.
            batch: Receives images and labels.
            places: Where in the batch each of them goes (N,).
        """
        ascending = np.argsort(index)
        index, places = index[ascending], places[ascending]
        part_of = np.searchsorted(self._starts, index, side="right") - 1
        for part in np.unique(part_of):
            here = part_of == part
            rows = index[here] - self._starts[part]
            batch.images[places[here]] = self._images[part][rows]
            batch.labels[places[here]] = self._labels[part][rows]
