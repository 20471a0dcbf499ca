"""Small image files that the tests of this folder write."""

import io
import zipfile
from pathlib import Path

import numpy as np


def arrays(n=12, num_classes=3, size=4, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (n, size, size, channels)).astype(np.uint8)
    return image, np.arange(n) % num_classes


def write_npz(path: Path, keys=("image", "label"), **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(zip(keys, arrays(**kwargs), strict=True)))
    return path


def write_members(path: Path, image: bytes, label: bytes) -> Path:
    """A sound zip file around the bytes given, whatever they are."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", image)
        archive.writestr("label.npy", label)
    return path


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
