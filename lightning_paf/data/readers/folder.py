"""Folders of images that can be fetched one by one: converted archives, and pools of many shards."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.checks import check_images, check_label_header, check_label_range, check_labels, check_same_size
from lightning_paf.data.manifest import MANIFEST_FILE, is_pool, read_manifest
from lightning_paf.data.readers.npy import NpyFile, inspect_npy
from lightning_paf.data.synthetic.convert import IMAGE_FILE, LABEL_FILE, is_converted

COUNTED_AT_ONCE = 2**20  # labels; np.bincount copies them


class ShardFiles(NamedTuple):
    """Image and label file of a shard."""

    image: NpyFile
    label: NpyFile


class ImageFolder(ABC):
    """Files of images, and what is known of all of them together.

    Args:
        shards: The files, in the order that numbers the images.
    """

    def __init__(self, shards: list[ShardFiles]) -> None:
        self.shards = shards

    @abstractmethod
    def count_classes(self, like: Sequence[int], num_classes: int) -> NDArray[np.int64]:
        """Check that the images can stand beside real ones.

        Args:
            like: Shape (…, H, W, C) of the real images.
            num_classes: Labels must be 0 .. num_classes - 1.

        Returns:
            Number of images of each class (K,).

        Raises:
            ValueError: They cannot.
        """


class ConvertedFolder(ImageFolder):
    """`image.npy` uint8 (N, H, W, C) and `label.npy` integers (N,).

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__([ShardFiles(inspect_npy(folder / IMAGE_FILE), inspect_npy(folder / LABEL_FILE))])
        self.folder = folder

    def count_classes(self, like: Sequence[int], num_classes: int) -> NDArray[np.int64]:
        """Look at the headers and read all labels."""
        where, (image, label) = str(self.folder), self.shards[0]
        check_images(image.shape, image.dtype, like[-1], where)
        check_same_size(image.shape, like, where)
        check_label_header(label.shape, label.dtype, image.shape[0], where)
        counts = np.zeros(num_classes, np.int64)
        labels = label.map()
        check_labels(labels, num_classes, where)
        for start in range(0, len(labels), COUNTED_AT_ONCE):
            counts += np.bincount(labels[start : start + COUNTED_AT_ONCE], minlength=num_classes)
        return counts


class PoolFolder(ImageFolder):
    """A pool of many shards. Its manifest tells everything; no shard is touched.

    Args:
        folder: Holds `manifest.json`.
    """

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        super().__init__([ShardFiles(*manifest.files(folder, shard)) for shard in manifest.shards])
        self.where = str(folder / MANIFEST_FILE)
        self.image_shape = manifest.image_shape
        self.counts = np.zeros(max(len(shard.classes) for shard in manifest.shards), np.int64)
        for shard in manifest.shards:
            self.counts[: len(shard.classes)] += shard.classes

    def count_classes(self, like: Sequence[int], num_classes: int) -> NDArray[np.int64]:
        """Look at what the manifest says."""
        shape = (int(self.counts.sum()), *self.image_shape)
        check_images(shape, np.dtype(np.uint8), like[-1], self.where)
        check_same_size(shape, like, self.where)
        occurring = np.flatnonzero(self.counts)
        check_label_range(int(occurring[0]), int(occurring[-1]), num_classes, self.where)
        return np.bincount(occurring, self.counts[occurring], num_classes).astype(np.int64)


def open_folder(folder: Path) -> ImageFolder:
    """Look into a folder of either kind; no image is read.

    Raises:
        ValueError: It is neither, or its files are damaged.
    """
    if is_pool(folder):
        return PoolFolder(folder)
    if not is_converted(folder):
        raise ValueError(f"{folder}: not converted yet. Call prepare_data() before setup(), as the trainer does.")
    return ConvertedFolder(folder)
