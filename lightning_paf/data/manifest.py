"""The manifest of a pool folder: `manifest.json`, which lists its shards and what must be in them.

    {"format": "lightning-paf pool", "version": 1, "image_shape": [32, 32, 3], "shards": [
    {"images": 100000,
     "image": {"file": "shard-00000.image.npy", "bytes": 307200128, "sha256": "…", "sample": "…"},
     "label": {"file": "shard-00000.label.npy", "bytes": 800128, "sha256": "…", "sample": "…"},
     "classes": [10031, 9988, …]},
    …
    ]}

`image` is a npy file uint8 (images, H, W, C), `label` one of little-endian int64 (images,); `sample` is the hash of a
few blocks of the file, `classes` the number of images of class 0, 1, …. Images are numbered in the order of the shards.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lightning_paf.data.readers.npy import NpyFile

MANIFEST_FILE = "manifest.json"
FORMAT, VERSION = "lightning-paf pool", 1
LABEL_TYPE = np.dtype("<i8")
_REPAIR = "Copy the file again from where the pool came from, or write the pool again with `lightning-paf pool write`."


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a shard.

    Args:
        name: Path below the pool's folder.
        size: Bytes.
        sha256: Hash of the whole file.
        sample: Hash of some blocks of it.
    """

    name: str
    size: int
    sha256: str
    sample: str


@dataclass(frozen=True, slots=True)
class Shard:
    """Some images of a pool.

    Args:
        images: Their number.
        image: The file that holds them.
        label: The file that holds their labels.
        classes: Number of images of each class; classes above the last one have none.
    """

    images: int
    image: ListedFile
    label: ListedFile
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What a pool folder holds.

    Args:
        image_shape: (H, W, C) of every image.
        shards: In the order that numbers the images.
    """

    image_shape: tuple[int, ...]
    shards: list[Shard]

    def __len__(self) -> int:
        return sum(shard.images for shard in self.shards)

    def files(self, folder: Path, shard: Shard) -> tuple[NpyFile, NpyFile]:
        """Image and label file of a shard, as they must be."""
        image, label = (f"{folder}/{listed.name}" for listed in (shard.image, shard.label))
        return (
            NpyFile(image, (shard.images, *self.image_shape), np.dtype(np.uint8), shard.image.size),
            NpyFile(label, (shard.images,), LABEL_TYPE, shard.label.size),
        )


def is_pool(folder: Path) -> bool:
    """Tell whether a folder holds a manifest."""
    return (folder / MANIFEST_FILE).is_file()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, one shard a line."""
    head = {"format": FORMAT, "version": VERSION, "image_shape": list(manifest.image_shape)}
    rows = ",\n".join(json.dumps(_shard_content(shard)) for shard in manifest.shards)
    text = f'{json.dumps(head)[:-1]}, "shards": [\n{rows}\n]}}\n'
    with (folder / MANIFEST_FILE).open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json`; no shard is touched.

    Raises:
        ValueError: It is damaged, of another version, or names files outside the folder.
    """
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not JSON ({error}). {_REPAIR}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not the manifest of a pool, which says {FORMAT!r} as its format. "
            "Rename the file if it belongs to something else, or pass the folder of a pool as --data.synthetic."
        )
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path}: must be of version {VERSION}, but is of version {content.get('version')}. "
            "Write the pool again with `lightning-paf pool write`, or use the release that wrote it."
        )
    try:
        return _manifest(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, a part is missing or misplaced ({error}). {_REPAIR}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}. {_REPAIR}") from error


def _shard_content(shard: Shard) -> dict[str, Any]:
    return {
        "images": shard.images,
        **{
            key: {"file": file.name, "bytes": file.size, "sha256": file.sha256, "sample": file.sample}
            for key, file in (("image", shard.image), ("label", shard.label))
        },
        "classes": list(shard.classes),
    }


def _manifest(content: dict[str, Any]) -> Manifest:
    shape = tuple(_number(size, 1, "a size in image_shape") for size in content["image_shape"])
    if len(shape) != 3:
        raise ValueError(f"image_shape must be (H, W, C), but is {shape}")
    manifest = Manifest(shape, [_shard(entry, shape) for entry in content["shards"]])
    if not manifest.shards:
        raise ValueError("it must list at least one shard, but lists none")
    names = [file.name for shard in manifest.shards for file in (shard.image, shard.label)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"every file must be listed once, but {twice} is listed again")
    return manifest


def _shard(entry: dict[str, Any], image_shape: tuple[int, ...]) -> Shard:
    images = _number(entry["images"], 1, "the number of images")
    classes = tuple(_number(count, 0, "the number of images of a class") for count in entry["classes"])
    if sum(classes) != images:
        raise ValueError(f"classes must add up to the {images} images of a shard, but give {sum(classes)}")
    image = _listed(entry["image"], images * math.prod(image_shape))
    return Shard(images, image, _listed(entry["label"], images * LABEL_TYPE.itemsize), classes)


def _listed(entry: dict[str, Any], data_bytes: int) -> ListedFile:
    name = str(entry["file"])
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"files must lie in the pool's own folder, but {name!r} is outside")
    size = _number(entry["bytes"], data_bytes + 1, f"the size of {name}")
    return ListedFile(name, size, str(entry["sha256"]), str(entry["sample"]))


def _number(value: Any, least: int, what: str) -> int:
    if type(value) is not int or value < least:  # bool is an int
        raise ValueError(f"{what} must be a whole number from {least} on, but is {value!r}")
    return value
