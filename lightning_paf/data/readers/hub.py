"""Datasets of Hugging Face: saved folders, and names on the hub."""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_paf.data.readers.pictures import Pictures, check_names, decoded
from lightning_paf.utils.terminal import clause

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

_PARTS = {"validation": "val", "valid": "val"}


class HubPictures(Pictures):
    """Images of a dataset with a column of images and one of classes.

    Args:
        root: Folder of `save_to_disk`, a folder that `load_dataset` reads, or a name on the hub.
        part: train, val or test.
        class_names: Names of the classes in the order of the labels; by default those of the column.

    Raises:
        ValueError: `datasets` is not installed, the dataset cannot be loaded, or it has no such part or columns.
    """

    def __init__(self, root: Path, part: str, class_names: Sequence[str] | None = None) -> None:
        from datasets import ClassLabel, Image

        parts = hub_parts(root)
        if part not in parts:
            raise ValueError(f"{root} must have the part {part}, got {', '.join(parts)}. Pass another --data.root.")
        table = parts[part]
        kinds = {name: type(feature) for name, feature in table.features.items()}
        images = [name for name, kind in kinds.items() if kind is Image]
        labels = [name for name, kind in kinds.items() if kind is ClassLabel]
        if not images or not labels:
            raise ValueError(
                f"{root} must have a column of images and one of ClassLabel, got {', '.join(kinds)}. Cast the columns, "
                "e.g. with cast_column('label', datasets.ClassLabel(names=[...]))."
            )
        found = table.features[labels[0]].names
        self.class_names = tuple(class_names or found)
        self._image, self._where = images[0], f"{root}, {part} image"
        self._rows = table.cast_column(self._image, Image(decode=False))
        given = np.asarray(table[labels[0]], np.int64)
        check_names(found, self.class_names, str(root))
        if given.min() < 0:
            raise ValueError(f"{root}: all images must have a class, got {(given < 0).sum()} without. Remove them.")
        self._labels = np.array([self.class_names.index(name) for name in found])[given]
        self.version = table._fingerprint

    def __len__(self) -> int:
        return len(self._labels)

    def open(self, index: int) -> "tuple[Image, int]":
        """Open an image and return it with its label."""
        from PIL import Image

        return Image.open(io.BytesIO(self._bytes(index))), int(self._labels[index])

    def name(self, index: int) -> str:
        """Return the name of the dataset, the part and the index."""
        return f"{self._where} {index}"

    def read(self, index: int, channels: int) -> "NDArray[np.uint8]":
        """Decode an image to (H, W, C)."""
        return decoded(self._bytes(index), channels)

    def _bytes(self, index: int) -> bytes:
        row: dict[str, Any] = self._rows[index][self._image]
        return row["bytes"] or Path(row["path"]).read_bytes()


@lru_cache(1)
def hub_parts(root: Path) -> dict[str, Any]:
    """Load a dataset, and return its parts by train, val and test.

    Without a part for test, that for validation is the test part.

    Raises:
        ValueError: `datasets` is not installed, or the dataset cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "data.dataset=huggingface needs the package datasets, not installed here. Run pip install "
            "'lightning-paf[huggingface]'."
        ) from error
    try:
        saved = (root / "dataset_dict.json").is_file()
        found = datasets.load_from_disk(root) if saved else datasets.load_dataset(str(root))
    except Exception as error:  # it raises many kinds
        raise ValueError(
            f"data.root must be a folder of DatasetDict.save_to_disk or a name on the hub, got {root}: "
            f"{clause(error)}. Check the name, the files and the network."
        ) from error
    parts = {_PARTS.get(name, name): table for name, table in found.items()}
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    return parts
