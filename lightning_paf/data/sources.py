"""Real images, read into memory as uint8 (N, H, W, C)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.checks import check_classes, check_images, check_label_header, check_labels, check_same_size
from lightning_paf.data.readers.archives import UNLABELLED, has_npz_part, open_archive, open_part
from lightning_paf.data.readers.npy import Archive, Column
from lightning_paf.data.readers.torchvision_sets import open_torchvision
from lightning_paf.specs import DatasetSpec

DIGITS_TEST_SIZE = 360

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels.

    Args:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def changing(self) -> bool:
        """Whether the images depend on the epoch."""
        return hasattr(self.images, "drawn")

    def drawn(self, index: NDArray[np.int64], epoch: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of these indices (n,) in these epochs (n,)."""
        images: Any = self.images
        found: NDArray[np.uint8] = images.drawn(index, epoch) if self.changing else images[index]
        return found

    def take(self, index: slice | NDArray[Any]) -> "ImageSet":
        """Select images; a slice copies nothing."""
        return ImageSet(self.images[index], self.labels[index])


Reader = Callable[[DatasetSpec, Path, Part, bool], ImageSet]


class RealData(NamedTuple):
    """Training images, of which any prefix is a random sample, and test images."""

    train: ImageSet
    test: ImageSet


def read_dataset(spec: DatasetSpec, root: Path, download: bool) -> RealData:
    """Read and check the training and test images of a dataset; see `read_part`."""
    found = read_parts(spec, root, ["train", "test"], download)
    return RealData(found["train"], found["test"])


def read_parts(
    spec: DatasetSpec,
    root: Path,
    parts: Sequence[Part],
    download: bool,
    labelled: bool = True,
    reader: Reader | None = None,
) -> dict[Part, ImageSet]:
    """Read and check parts of a dataset with images of one size; see `read_part`."""
    found = {part: read_part(spec, root, part, download, labelled, reader) for part in parts}
    for part in parts[1:]:
        where = f"{spec.name} in {root}, {part} set"
        check_same_size(found[part].images.shape, found[parts[0]].images.shape, where)
    return found


def read_part(
    spec: DatasetSpec, root: Path, part: Part, download: bool, labelled: bool = True, reader: Reader | None = None
) -> ImageSet:
    """Read and check one part of a dataset.

    Args:
        spec: Dataset, with its number of classes and channels.
        root: Folder of the dataset in torchvision's layout; for `npz`, the folder of `train.npz` and others.
        part: `val` exists for `npz` only.
        download: Download files that torchvision does not find in `root`.
        labelled: Whether labels are required; without them, an `npz` file has only labels `UNLABELLED`.
        reader: Reader of encoded images; None for a dataset of arrays.

    Raises:
        ValueError: The images cannot be read, or images or labels break a rule.
    """
    if reader is None and spec.name not in _READERS:
        raise ValueError(
            f"The dataset must be one of {', '.join(_READERS)} for this command, got {spec.name}. Pass the images as "
            "npz."
        )
    images = (reader or _READERS[spec.name])(spec, root, part, download)
    where = f"{spec.name} in {root}, {'training' if part == 'train' else part} set"
    if labelled or (images.labels != UNLABELLED).any():
        check_labels(images.labels, spec.num_classes, where)
    if part == "train":
        check_classes(np.bincount(images.labels, minlength=spec.num_classes), where, spec.class_names)
    return images


def read_file(path: Path, channels: int) -> ImageSet:
    """Read one file of images and labels; see `readers.archives`.

    Raises:
        ValueError: The file is missing or damaged, or does not hold uint8 images (N, H, W, channels) and their labels.
    """
    return _read_archive(open_archive(path), channels, str(path), shuffled=False)


def _read_npz(spec: DatasetSpec, root: Path, part: Part, download: bool) -> ImageSet:
    """One part of `root`; training images, which can be sorted by class, are shuffled."""
    where = str(root if root.is_file() else root / f"{part}.npz")
    return _read_archive(open_part(root, part), spec.channels, where, shuffled=part == "train")


def _read_archive(opened: AbstractContextManager[Archive], channels: int, where: str, shuffled: bool) -> ImageSet:
    with opened as archive:
        check_images(archive.image, channels, where)
        count = archive.image.shape[0]
        check_label_header(archive.label, count, where)
        rows = np.arange(count)
        if shuffled:
            rows[np.random.default_rng(0).permutation(count)] = np.arange(count)
        images = ImageSet(np.empty(archive.image.shape, np.uint8), np.empty(count, np.int64))
        _fill(images.images, archive.image, rows)
        _fill(images.labels, archive.label, rows)
    return images


def has_part(spec: DatasetSpec, root: Path, part: Part) -> bool:
    """Check whether a dataset of arrays has a part; npz files can lack `test`."""
    return has_npz_part(root, part) if spec.name == "npz" else part != "val"


def npz_channels(root: Path) -> int | None:
    """Return 1 for grey images; None for others, and without readable files."""
    with suppress(OSError, ValueError):  # reported when the file is read
        for part in ("train", "val", "test"):
            if has_npz_part(Path(root), part):
                with open_part(Path(root), part) as archive:
                    return 1 if archive.image.shape[-1] == 1 else None
    return None


def hold_out(train: ImageSet, size: int) -> tuple[ImageSet, ImageSet]:
    """Split training images into (the rest, the first `size` for validation).

    Gowal et al. 2020, Rade & Moosavi-Dezfooli 2022 and Wang et al. 2023 hold out the first 1,024 CIFAR images.

    Raises:
        ValueError: `size` is less than one or more than half of the images.
    """
    if not 1 <= size <= len(train) // 2:
        raise ValueError(
            f"val_size must be 1 to {len(train) // 2}, half of the {len(train)} training images, got {size}. "
            f"Pass --data.val_size {max(1, len(train) // 10)}, or --data.selection test for none."
        )
    return train.take(slice(size, None)), train.take(slice(size))


def _read_digits(spec: DatasetSpec, root: Path, part: Part, download: bool) -> ImageSet:
    """The 8x8 digits of scikit-learn, 16 grey levels scaled to 0 to 255."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=DIGITS_TEST_SIZE, stratify=labels, random_state=0)
    return ImageSet(images, labels).take(train if part == "train" else test)


def _read_cifar(spec: DatasetSpec, root: Path, part: Part, download: bool) -> ImageSet:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[spec.name]
    found = open_torchvision(lambda: dataset(root, train=part == "train", download=download), root)
    return ImageSet(np.ascontiguousarray(found.data), np.asarray(found.targets, np.int64))


def _read_svhn(spec: DatasetSpec, root: Path, part: Part, download: bool) -> ImageSet:
    from torchvision.datasets import SVHN

    found = open_torchvision(lambda: SVHN(root, split=part, download=download), root)
    return ImageSet(np.ascontiguousarray(found.data.transpose(0, 2, 3, 1)), np.asarray(found.labels, np.int64))


def _fill(array: NDArray[Any], column: Column, rows: NDArray[np.int64]) -> None:
    """Write a column into the given rows of an array, without a second copy in memory."""
    start = 0
    for chunk in column.chunks():
        array[rows[start : start + len(chunk)]] = chunk
        start += len(chunk)


_READERS: dict[str, Reader] = {
    "digits": _read_digits,
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "svhn": _read_svhn,
    "npz": _read_npz,
}
