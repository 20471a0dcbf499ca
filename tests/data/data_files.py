"""Small image files that the tests of this folder write."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest


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


def write_folder(folder: Path, image, label) -> Path:
    """A converted folder."""
    folder.mkdir()
    np.save(folder / "image.npy", image)
    np.save(folder / "label.npy", label)
    return folder


def write_sparse_folder(folder: Path, n: int) -> Path:
    """A converted folder of `n` black CIFAR-sized images of class 0, which take no room on disk."""
    folder.mkdir()
    skip_without_sparse_files(folder)
    for name, dtype, shape in (("image", np.uint8, (n, 32, 32, 3)), ("label", np.int64, (n,))):
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
    return folder


def skip_without_sparse_files(folder: Path) -> None:
    probe = folder / "probe"
    with probe.open("wb") as file:
        file.truncate(64 * 2**20)
    if probe.stat().st_blocks * 512 > 2**20:
        pytest.skip(f"{folder}: this file system has no sparse files")
    probe.unlink()
