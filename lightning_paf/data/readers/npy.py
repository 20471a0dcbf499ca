"""npy files: their header, and their rows in pieces and by number."""

import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 4 * 2**20
MAPPED_FILES = 100  # of the 256 (macOS) or 1,024 (most of Linux) that a process may have open


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a npy stream; version 3 only differs for structured types, which hold no images.

    Returns:
        Shape, whether it is in Fortran order, and element type.

    Raises:
        EOFError: This is no npy header.
    """
    try:
        major, _ = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        return read(stream)
    except ValueError as error:
        raise EOFError(str(error)) from error


def read_rows(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> Iterator[NDArray[Any]]:
    """Read what follows the header, in pieces of about `CHUNK_BYTES`.

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


@dataclass(frozen=True, slots=True)
class NpyFile:
    """A npy file whose size and header are known, so that its rows can be read without looking at them again.

    Args:
        path: Where it is; text, because there may be 20,000 of them.
        shape: Shape of its array, which is in C order.
        dtype: Its element type.
        size: Bytes of the file; the array is the last part of them.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    size: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def start(self) -> int:
        """Place of the first row in the file."""
        return self.size - self.shape[0] * self.row_bytes

    def check_size(self, handle: int) -> None:
        """Check that an open file is still as long as it was.

        Raises:
            ValueError: It is not.
        """
        size = os.fstat(handle).st_size
        if size != self.size:
            raise ValueError(
                f"{self.path}: has changed since it was checked: {self.size:,} bytes were expected, but it has "
                f"{size:,}. Copy or convert it again, and leave it alone while it is in use."
            )

    def map(self) -> NDArray[Any]:
        """Map the array into memory; see `check_size`."""
        handle = os.open(self.path, os.O_RDONLY)  # faster than `Path.open`, and done often where files are many
        try:
            self.check_size(handle)
            content = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(handle)
        content.madvise(mmap.MADV_RANDOM)  # no reading ahead, which is read in vain where rows are drawn at random
        return np.ndarray(self.shape, self.dtype, content, self.start)

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Read the array in consecutive pieces; see `check_size`."""
        with Path(self.path).open("rb") as file:
            self.check_size(file.fileno())
            file.seek(self.start)
            yield from read_rows(file, self.shape, self.dtype)


def inspect_npy(path: Path) -> NpyFile:
    """Read the header of a npy file.

    Raises:
        ValueError: It cannot be read, is none, is cut off, or is stored in Fortran order.
    """
    repair = "Copy it again, or remove the folder if it was converted: the next start converts it again."
    try:
        with path.open("rb") as file:
            shape, fortran_order, dtype = read_header(file)
            expected, size = file.tell() + math.prod(shape) * dtype.itemsize, file.seek(0, 2)
    except (EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a npy file ({error}). {repair}") from error
    if size != expected:
        raise ValueError(f"{path}: must have {expected:,} bytes, but has {size:,}. {repair}")
    if fortran_order and len(shape) > 1:
        raise ValueError(f"{path}: stored in Fortran order. Save np.ascontiguousarray(…) instead.")
    return NpyFile(str(path), shape, dtype, size)


class MappedFiles:
    """Reads rows of npy files by number; the files that were read last stay mapped. A pickle holds no map."""

    def __init__(self) -> None:
        self._maps: dict[str, NDArray[Any]] = {}

    def __reduce__(self) -> tuple[type["MappedFiles"], tuple[()]]:
        return MappedFiles, ()

    def read(self, file: NpyFile, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Copy rows out of a file.

        Args:
            file: The file.
            rows: Their numbers (n,).

        Raises:
            ValueError: The file has another size than it had.
        """
        array = self._maps.pop(file.path) if file.path in self._maps else file.map()
        self._maps[file.path] = array  # at the end: a dict keeps the order of insertion
        if len(self._maps) > MAPPED_FILES:
            del self._maps[next(iter(self._maps))]
        return array[rows]
