"""Image files in one folder per class, the layout of torchvision's `ImageFolder`."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.readers.photographs import SUFFIXES
from lightning_paf.data.readers.pictures import Pictures, channels_of, check_names, decoded, some

if TYPE_CHECKING:
    from PIL.Image import Image


def class_folders(folder: Path) -> tuple[str, ...]:
    """List the folders of the classes, sorted by name.

    Raises:
        ValueError: The folder does not exist, or holds no folder, or only one of the training.
    """
    if not folder.is_dir():
        raise ValueError(
            f"data.root must hold {folder.name}/CLASS/*, got no folder {folder}. Pass --data.root FOLDER with "
            "train/CLASS/* and test/CLASS/*."
        )
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    least = 2 if folder.name == "train" else 1
    if len(found) < least:
        raise ValueError(
            f"{folder} must hold the images of at least {least} class{'es' * (least > 1)} in folders, got "
            f"{some(found)}. Sort them into {folder.name}/CLASS/*, or pass another --data.root."
        )
    return tuple(found)


def first_shape(root: Path) -> tuple[int, int, int] | None:
    """Return channels, height and width of the first readable image, if any."""
    from PIL import Image

    for folder in filter(Path.is_dir, (root / part for part in ("train", "val", "test"))):
        for name in class_folders(folder):
            for path, *_ in sorted(_image_files(folder, name)):
                with contextlib.suppress(OSError, ValueError), Image.open(folder / path) as image:
                    return channels_of(image), image.height, image.width
    return None


class FolderPictures(Pictures):
    """Image files of `root/PART/CLASS` and its subfolders, sorted by path.

    The names are one array of bytes, so worker processes share them.

    Args:
        root: Folder of the dataset.
        part: train, val or test.
        class_names: Names of the classes in the order of the labels; None for those of the folder.

    Raises:
        ValueError: A folder of a class is missing in `train`, is not one of `class_names`, or has no image; or there is
            no such folder.
    """

    def __init__(self, root: Path, part: str, class_names: Sequence[str] | None = None) -> None:
        self.folder = root / part
        found = class_folders(self.folder)
        self.class_names = found if class_names is None else tuple(class_names)
        self._check_names(found, part)
        digest = hashlib.sha256()
        names, labels = [], []
        for name in found:
            files = sorted(_image_files(self.folder, name))
            if not files:
                raise ValueError(
                    f"{self.folder / name} must hold images ({', '.join(SUFFIXES)}), got none. Add images of the "
                    "class, or remove the folder."
                )
            digest.update(repr(files).encode())
            names.append(np.array([os.fsencode(path) for path, *_ in files]))
            labels.append(np.full(len(files), self.class_names.index(name), np.int64))
        self._names: NDArray[np.bytes_] = np.concatenate(names)
        self._labels: NDArray[np.int64] = np.concatenate(labels)
        self.version = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._labels)

    def open(self, index: int) -> "tuple[Image, int]":
        """Open an image file and return it with its label."""
        from PIL import Image

        return Image.open(self.name(index)), int(self._labels[index])

    def name(self, index: int) -> str:
        """Return the path of an image file."""
        return os.path.join(self.folder, os.fsdecode(self._names[index]))  # noqa: PTH118  # faster than `Path`

    def read(self, index: int, channels: int) -> NDArray[np.uint8]:
        """Decode an image file to (H, W, C)."""
        return decoded(Path(self.name(index)).read_bytes(), channels)

    def _check_names(self, found: Sequence[str], part: str) -> None:
        check_names(found, self.class_names, str(self.folder))
        missing = [name for name in self.class_names if name not in found]
        if part == "train" and missing:
            raise ValueError(
                f"{self.folder} must have a folder for each class, got {some(found)} without {some(missing)}. Add the "
                "folders, or pass another --data.root."
            )


def _image_files(root: Path, name: str) -> Iterator[tuple[str, int, int]]:
    """Yield path in `root`, size and time of the images, once for each folder."""
    start = len(str(root)) + 1
    known: set[str] = set()
    for parent, folders, files in os.walk(root / name, followlinks=True):
        if (real := os.path.realpath(parent)) in known:  # a link to a folder above, for example
            folders.clear()
            continue
        known.add(real)
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                path = os.path.join(parent, file)  # noqa: PTH118  # faster than `Path` for a million files
                stat = _stat(path)
                yield path[start:], stat.st_size, stat.st_mtime_ns


def _stat(path: str) -> os.stat_result:
    """Return the facts of a file, or of a broken link: a damaged image."""
    try:
        return os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return os.lstat(path)
