"""The user's images: classes, channels and size are read from the files."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.checks import readable
from lightning_paf.data.encoded import EncodedImages, check_channels, fitted_size, indexed, readable_rows
from lightning_paf.data.fit import Fit
from lightning_paf.data.readers.class_folders import FolderPictures, class_folders, first_shape
from lightning_paf.data.readers.folder import IMAGE_FILE, LABEL_FILE
from lightning_paf.data.readers.hub import HubPictures, hub_parts
from lightning_paf.data.readers.npy import Column
from lightning_paf.data.readers.pictures import Pictures, channels_of
from lightning_paf.data.readers.torchvision_sets import TorchvisionPictures
from lightning_paf.data.sources import ImageSet, Part, npz_channels
from lightning_paf.data.synthetic.convert import converting, write_array
from lightning_paf.specs import NOMINAL_SIZE, DatasetSpec, dataset_spec, is_encoded, is_own

STREAMED_BYTES = 4 * 2**30
"""Largest size of a set that is converted to an array by default."""


class _Kind(NamedTuple):
    """Functions that open a part of a dataset, and check whether it exists."""

    open: Callable[[Path, str, Sequence[str] | None], Pictures]
    has: Callable[[Path, str], bool]


def _kind(name: str) -> _Kind:
    known = {
        "folder": _Kind(FolderPictures, lambda root, part: (root / part).is_dir()),
        "huggingface": _Kind(HubPictures, lambda root, part: part in hub_parts(root)),
    }
    return known.get(name) or _Kind(partial(TorchvisionPictures, name), lambda root, part: part != "val")


@dataclass(frozen=True)
class OwnImages:
    """Reader of the user's encoded images.

    Args:
        root: Folder of the dataset.
        cache_dir: Folder for converted arrays; None for `root`.
        seed: Seed of random crops.
        size: Height and width of the images of `folder`: the shorter side is resized, and the centre is cropped. Null
            for images of one size, which are not changed.
        resize: Length of the shorter side before the centre crop, e.g. 256 for `size` 224; by default `size`.
        random_crop: Smallest area of a random crop of a training image that is resized to `size`, as a fraction; 0.08
            for ImageNet (`RandomResizedCrop`). Null for the centre crop.
        classes: Names of the classes in the order of the labels; by default the folders of `train`, sorted by name. A
            run records them.
        skip_corrupt: Leave out image files that cannot be read; otherwise they are an error before training.
        convert_channels: Convert image files with another number of channels than `channels`.
        stream: Decode image files in the workers whenever they are used. By default they are converted once to a
            memory-mapped array in `cache_dir` or `root`, except with `random_crop` and above 4 GiB.
    """

    root: Path
    cache_dir: Path | None
    seed: int
    size: int | None = None
    resize: int | None = None
    random_crop: float | None = None
    classes: list[str] | None = None
    skip_corrupt: bool = False
    convert_channels: bool = False
    stream: bool | None = None

    def check(self, spec: DatasetSpec) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of range, or not used by the dataset.
        """
        if is_encoded(spec.name):
            self._fit(spec, "train")
            return
        for name in ("resize", "random_crop", "classes", "stream"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"data.{name} must be null for data.dataset={spec.name}, got {getattr(self, name)}. Leave "
                    f"--data.{name} out, or pass --data.dataset folder."
                )

    def _fit(self, spec: DatasetSpec, part: Part) -> Fit:
        return Fit(self.size, self.resize, self.random_crop if part == "train" else None, spec.channels)

    def __call__(self, spec: DatasetSpec, root: Path, part: Part, download: bool) -> ImageSet:
        """Read one part in a fixed random order; the first start converts it.

        Raises:
            ValueError: An image is damaged, or has other channels or another size.
        """
        pictures = _kind(spec.name).open(root, part, spec.class_names or None)
        where = f"{spec.name} in {root}, {'training' if part == 'train' else part} set"
        index = indexed(pictures, self._folder / f"{part}.{pictures.version[:12]}.index.npz")
        rows = readable_rows(pictures, index, where, self.skip_corrupt)
        check_channels(pictures, index, rows, spec.channels, where, self.convert_channels)
        rows = rows[np.random.default_rng(0).permutation(len(rows))]
        shape = fitted_size(pictures, index, rows, self.size, where)
        images: Any = EncodedImages(pictures, rows, self._fit(spec, part), shape, self.seed)
        labels = index.labels[rows]
        kept: Any = images if self._streams(images) else self._mapped(images, labels, part)
        return ImageSet(kept, labels)

    @staticmethod
    def has_part(spec: DatasetSpec, root: Path, part: Part) -> bool:
        """Check whether a dataset has a part."""
        return _kind(spec.name).has(root, part)

    @property
    def _folder(self) -> Path:
        return self.cache_dir or (self.root if self.root.is_dir() else Path("data") / self.root)  # a name on the hub

    def _streams(self, images: EncodedImages) -> bool:
        if self.stream is not None:
            return self.stream
        return images.fit.random_crop is not None or int(np.prod(images.shape)) > STREAMED_BYTES

    def _mapped(self, images: EncodedImages, labels: NDArray[np.int64], part: Part) -> NDArray[np.uint8]:
        """Return a memory-mapped array of the images, which is written at the first start."""
        name = f"{part}.{'x'.join(map(str, images.shape[1:]))}"
        version = f"{images.pictures.version} {images.fit} {self.skip_corrupt}"
        folder = self._folder / f"{name}.{hashlib.sha256(version.encode()).hexdigest()[:12]}"
        with converting(folder, name) as needed:
            if needed:
                label = Column(labels.shape, labels.dtype, lambda: iter([labels]))
                write_array(folder / LABEL_FILE, self.root, label, np.dtype(np.int64))
                write_array(folder / IMAGE_FILE, self.root, images.column(), np.dtype(np.uint8))
        mapped: NDArray[np.uint8] = np.load(folder / IMAGE_FILE, mmap_mode="r")
        return mapped


@readable()
def described(
    dataset: str,
    num_classes: int | None = None,
    channels: int | None = None,
    size: int | None = None,
    root: Path = Path("data"),
    classes: Sequence[str] | None = None,
) -> DatasetSpec:
    """Look up a dataset; of own images, read missing numbers from the files.

    Args:
        dataset: As in `dataset_spec`.
        num_classes: Number of classes; None for those of `classes`.
        channels: Number of channels; None for that of the first image.
        size: Height and width to which images are resized; None for those of the first image.
        root: Folder of the images.
        classes: Names of the classes; None for those of the training images.

    Raises:
        ValueError: There are no images, or a number is not that of the files.
    """
    if not is_own(dataset):
        return dataset_spec(dataset, num_classes, channels, size)
    if dataset == "npz":
        if size is not None:
            raise ValueError(f"data.size must be null for data.dataset=npz, got {size}. Resize the images in the file.")
        return dataset_spec(dataset, num_classes, npz_channels(root) if channels is None else channels)
    if dataset == "folder" and classes is None and num_classes is not None and not (Path(root) / "train").is_dir():
        return dataset_spec(dataset, num_classes, channels, size)  # a recipe whose images are missing here
    names, shape = _found(dataset, Path(root), num_classes, classes)
    if num_classes not in (None, len(names)):
        raise ValueError(
            f"data.num_classes must be {len(names)}, the number of classes in {root}, got {num_classes}. Leave "
            "--data.num_classes out."
        )
    shape = shape or (channels or 3, NOMINAL_SIZE, NOMINAL_SIZE)
    height, width = shape[1:] if size is None else (size, size)
    spec = dataset_spec(dataset, len(names), channels or shape[0], height, names)
    return replace(spec, width=width)


def _found(
    dataset: str, root: Path, num_classes: int | None, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, int, int] | None]:
    """Return names of the classes, and (C, H, W) of the first image, if any."""
    if dataset == "folder":
        return tuple(classes or class_folders(root / "train")), first_shape(root)
    kind = _kind(dataset)
    pictures = kind.open(root, "train" if kind.has(root, "train") else "test", classes)
    names = pictures.class_names or tuple(map(str, range(num_classes or 0)))
    if not names:
        raise ValueError(
            f"data.num_classes must be set for {dataset}, which has no names of classes. Pass --data.num_classes K."
        )
    with pictures.open(0)[0] as image:
        return tuple(names), (channels_of(image), image.height, image.width)
