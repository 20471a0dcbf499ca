"""Small image files that the tests of this folder write."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lightning_paf.data.manifest import ListedFile, Manifest, Shard, write_manifest
from lightning_paf.data.shard_check import list_file, sampled_hash


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


def write_shards(folder: Path, image, label, sizes) -> Path:
    """A pool folder whose shards have these numbers of images."""
    folder.mkdir(parents=True)
    shards, first = [], 0
    for number, size in enumerate(sizes):
        rows, paths = slice(first, first + size), [folder / f"{number}.{kind}.npy" for kind in ("image", "label")]
        np.save(paths[0], image[rows])
        np.save(paths[1], label[rows].astype("<i8"))
        shards.append(Shard(size, *map(list_file, paths), tuple(np.bincount(label[rows]).tolist())))
        first += size
    write_manifest(folder, Manifest(image.shape[1:], shards))
    return folder


def write_sparse_shards(folder: Path, shards: int, size: int) -> Path:
    """A pool folder of CIFAR-sized images that takes little room on disk; hashes of whole files are left out.

    Images are black, but the first bytes of a shard's first one tell its number; that one is of class 1, others of 0.
    """
    folder.mkdir()
    skip_without_sparse_files(folder)
    label = (1).to_bytes(8, "little")
    listed = []
    for shard in range(shards):
        image = write_sparse(folder / f"{shard}.image.npy", (size, 32, 32, 3), np.uint8, shard.to_bytes(8, "little"))
        listed.append(
            Shard(size, image, write_sparse(folder / f"{shard}.label.npy", (size,), "<i8", label), (size - 1, 1))
        )
    write_manifest(folder, Manifest((32, 32, 3), listed))
    return folder


def write_sparse(path: Path, shape, dtype, begin: bytes) -> ListedFile:
    dtype = np.dtype(dtype)
    with path.open("w+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        size = file.tell() + int(np.prod(shape)) * dtype.itemsize
        file.write(begin)
        file.truncate(size)
        return ListedFile(path.name, size, "", sampled_hash(file, size))
