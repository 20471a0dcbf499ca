"""Datasets of torchvision by their class path."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_paf.data.readers.pictures import Pictures
from lightning_paf.specs import TORCHVISION

if TYPE_CHECKING:
    from PIL.Image import Image

_SPLITS = {"train": ("train", "trainval", "train-standard"), "test": ("test", "val"), "val": ()}
"""Names in torchvision; ImageNet and Imagenette have no test images."""


class TorchvisionPictures(Pictures):
    """Images of a torchvision dataset that has the argument `train` or `split`.

    Args:
        path: Class path, such as `torchvision.datasets.FashionMNIST`.
        root: Folder of the dataset; missing files are downloaded into it.
        part: train or test.
        class_names: Names of the classes in the order of the labels; by default those of the dataset, if any.

    Raises:
        ValueError: There is no such dataset or part, its files are missing, or its labels are not classes.
    """

    def __init__(self, path: str, root: Path, part: str, class_names: Sequence[str] | None = None) -> None:
        self._data = open_torchvision(partial(_opened, path, root, part), root)
        self._where = f"{path}, {part} image"
        image, label = self._data[0]
        if not hasattr(image, "convert") or not isinstance(label, int | np.integer):
            raise ValueError(
                f"{path} must have an image and a class in each row, got {type(image).__name__} and "
                f"{type(label).__name__}. Pass a dataset for classification."
            )
        names = getattr(self._data, "classes", ())  # of ImageNet, tuples of synonyms
        self.class_names = tuple(class_names or (name if isinstance(name, str) else str(name[0]) for name in names))
        self.version = hashlib.sha256(f"{path} {part} {len(self._data)}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._data)

    def open(self, index: int) -> "tuple[Image, int]":
        """Return an image and its label."""
        image, label = self._data[index]
        return image, int(label)

    def name(self, index: int) -> str:
        """Return the class path, the part and the index."""
        return f"{self._where} {index}"


def open_torchvision(open_it: Callable[[], Any], root: Path) -> Any:
    """Call the constructor of a dataset of torchvision.

    Raises:
        ValueError: Files are missing and could not be downloaded.
    """
    try:
        return open_it()
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"data.root={root} must hold a complete copy of the dataset, and none could be downloaded ({error}). "
            "Unpack its archive there, or pass the folder that holds it as --data.root."
        ) from error


def _opened(path: str, root: Path, part: str) -> Any:
    cls = _class_of(path)
    parameters = inspect.signature(cls).parameters
    if "train" in parameters:
        return _read(cls, root, train=part == "train")
    reason = "one part"
    for split in _SPLITS[part] if "split" in parameters else ():
        try:
            return _read(cls, root, split=split)
        except ValueError as error:  # it has no split of this name
            reason = str(error)
    raise ValueError(
        f"{path} must have a part for {part}, got: {reason.rstrip('.')}. Save its images as train/CLASS/* and "
        "test/CLASS/*, and pass --data.dataset folder."
    )


def _class_of(path: str) -> Any:
    from torchvision import datasets

    found = getattr(datasets, path.removeprefix(TORCHVISION), None)
    if inspect.isclass(found) and issubclass(found, datasets.VisionDataset):
        return found
    near = [TORCHVISION + name for name in get_close_matches(path.removeprefix(TORCHVISION), datasets.__all__)]
    raise ValueError(
        f"data.dataset must be a dataset of torchvision, got {path}. "
        + (f"Similar: {', '.join(near)}." if near else "Pass e.g. torchvision.datasets.FashionMNIST.")
    )


def _read(cls: Any, root: Path, **part: Any) -> Any:
    """Open a dataset; one process downloads missing files."""
    from filelock import FileLock

    if "download" not in inspect.signature(cls).parameters:
        return cls(root, **part)
    with suppress(RuntimeError, OSError):
        return cls(root, **part)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{cls.__name__}.lock"):
        return cls(root, **part, download=True)
