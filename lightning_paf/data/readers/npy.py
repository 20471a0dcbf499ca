"""Arrays in files: names, headers, rows in chunks, and rows by index."""

import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 4 * 2**20
MAPPED_FILES = 100  # of the 256 (macOS) or 1,024 (most of Linux) that a process may have open


def choose_keys(path: Path, kind: str, found: Sequence[str], accepted: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the first accepted pair of names of images and labels that a file holds.

    Raises:
        ValueError: It holds none of them.
    """
    for keys in accepted:
        if set(keys) <= set(found):
            return keys
    pairs = " or ".join(f"{image} + {label}" for image, label in accepted)
    raise ValueError(f"{path}: must hold the {kind} {pairs}, got {', '.join(found) or 'none'}. Rename them.")


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an npy stream as (shape, Fortran order, element type).

    Raises:
        EOFError: The stream does not start with an npy header.
    """
    try:
        # Version 3 differs from 2 for structured types only.
        major, _ = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        return read(stream)
    except ValueError as error:
        raise EOFError(str(error)) from error


def read_rows(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> Iterator[NDArray[Any]]:
    """Read the rows after the header, in chunks of about `CHUNK_BYTES`.

    Raises:
        EOFError: The stream ends before the last row.
    """
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, shape[0], step):
        rows = min(step, shape[0] - start)
        data = stream.read(rows * row_bytes)
        if len(data) != rows * row_bytes:
            raise EOFError(f"rows {start} to {start + rows - 1} of {shape[0]} are cut off")
        yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])


def with_channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (N, H, W, 1) for (N, H, W), (N,) for (N, 1), or the same shape."""
    return (*shape, 1) if len(shape) == 3 else shape[:1] if shape[1:] == (1,) else shape


@dataclass(frozen=True)
class Column:
    """An array in a file that is read in chunks along the first axis.

    Args:
        shape: Shape of the array.
        dtype: Element type.
        chunks: Starts a new pass over the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Callable[[], Iterator[NDArray[Any]]]


@dataclass(frozen=True)
class Archive:
    """An open file of images (N, H, W, C) and labels (N,), not checked yet."""

    image: Column
    label: Column


@dataclass(frozen=True, slots=True)
class NpyFile:
    """An npy file with a known header and size.

    Args:
        path: Path of the file; a string, because there may be 20,000 of them.
        shape: Shape of its array, which is in C order.
        dtype: Element type.
        size: Size of the file in bytes; the array is at its end.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    size: int

    @property
    def start(self) -> int:
        """Offset of the first row in bytes."""
        return self.size - math.prod(self.shape) * self.dtype.itemsize

    def _check_size(self, handle: int) -> None:
        size = os.fstat(handle).st_size
        if size != self.size:
            raise ValueError(
                f"{self.path}: the file must not change while it is in use, got {size:,} bytes instead of "
                f"{self.size:,}. Copy or convert it again."
            )

    def map(self) -> NDArray[Any]:
        """Map the array into memory.

        Raises:
            ValueError: The size of the file has changed.
        """
        handle = os.open(self.path, os.O_RDONLY)  # faster than `Path.open`, and called often if there are many files
        try:
            self._check_size(handle)
            content = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(handle)
        content.madvise(mmap.MADV_RANDOM)  # no reading ahead, since rows are drawn at random
        return np.ndarray(self.shape, self.dtype, content, self.start)

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Read the array in chunks; raises like `map`."""
        with Path(self.path).open("rb") as file:
            self._check_size(file.fileno())
            file.seek(self.start)
            yield from read_rows(file, self.shape, self.dtype)


def inspect_npy(path: Path) -> NpyFile:
    """Read the header of an npy file.

    Raises:
        ValueError: The file cannot be read, is truncated, is not an npy file, or is stored in Fortran order.
    """
    repair = "Copy it again; if it was converted, remove the folder, and the next start converts it again."
    try:
        with path.open("rb") as file:
            shape, fortran_order, dtype = read_header(file)
            expected, size = file.tell() + math.prod(shape) * dtype.itemsize, file.seek(0, 2)
    except (EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not an npy file ({error}). {repair}") from error
    if size != expected:
        raise ValueError(f"{path}: the file must have {expected:,} bytes, got {size:,}. {repair}")
    if fortran_order and len(shape) > 1:
        raise ValueError(f"{path}: the array must be in C order, got Fortran order. Save np.ascontiguousarray(…).")
    return NpyFile(str(path), with_channels(shape), dtype, size)


class MappedFiles:
    """Reader of rows of npy files that keeps the most recently used files mapped.

    A pickle contains no map.
    """

    def __init__(self) -> None:
        self._map = lru_cache(MAPPED_FILES)(NpyFile.map)

    def __reduce__(self) -> tuple[type["MappedFiles"], tuple[()]]:
        return MappedFiles, ()

    def read(self, file: NpyFile, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Copy the rows (n,) of a file; raises like `NpyFile.map`."""
        return self._map(file)[rows]
