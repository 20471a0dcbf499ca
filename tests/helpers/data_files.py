"""Small files of images, for the tests of `lightning_paf.data`."""

import io
import zipfile
from pathlib import Path

import numpy as np

from lightning_paf.data.readers.archives import open_archive


def arrays(n=12, num_classes=3, size=4, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (n, size, size, channels)).astype(np.uint8)
    return image, np.arange(n) % num_classes


def write_npz(path: Path, keys=("image", "label"), **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(zip(keys, arrays(**kwargs), strict=True)))
    return path


def read(path: Path):
    """Images and labels of an archive."""
    with open_archive(path) as archive:
        return np.concatenate(list(archive.image.chunks())), np.concatenate(list(archive.label.chunks()))


def write_members(path: Path, image: bytes, label: bytes) -> Path:
    """A valid zip file around any bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", image)
        archive.writestr("label.npy", label)
    return path


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_folder(folder: Path, image, label) -> Path:
    """A converted folder."""
    folder.mkdir()
    np.save(folder / "image.npy", image)
    np.save(folder / "label.npy", label)
    return folder


def write_pairs(folder: Path, image, label, sizes) -> Path:
    """A folder of several pairs of arrays, by name and number of images."""
    folder.mkdir()
    splits = np.cumsum(list(sizes.values()))[:-1]
    for name, *arrays in zip(sizes, np.split(image, splits), np.split(label, splits), strict=True):
        for kind, array in zip(("image", "label"), arrays, strict=True):
            np.save(folder / f"{name}{kind}.npy", array)
    return folder


def write_fashion_mnist(root) -> np.ndarray:
    """Write the idx files of 20 training and 10 test images, and return the latter."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 20), ("t10k", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28)).astype(np.uint8)
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(np.array([0x801, count], ">i4").tobytes() + labels.tobytes())
    return images


def write_hub_dataset(folder, images) -> None:
    """Save the image files `PART/CLASS/*` of a folder as a dataset of Hugging Face."""
    import datasets

    names, parts = sorted(path.name for path in (images / "train").iterdir()), {}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    for part in ("train", "test"):
        paths = sorted((images / part).rglob("*.*"))
        columns = {"image": [str(path) for path in paths], "label": [names.index(path.parent.name) for path in paths]}
        parts[part] = datasets.Dataset.from_dict(columns, features)
    datasets.DatasetDict(parts).save_to_disk(folder)
