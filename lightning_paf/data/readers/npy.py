"""npy files: their header, their rows in pieces and by number, and how they are written."""

import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 16 * 2**20


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


def write_npy(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, chunks: Iterable[NDArray[Any]], no_room: str
) -> None:
    """Write an array in pieces, and force it to the disk: a rename that survives a power cut must not outlive the data.

    Args:
        path: File to write.
        shape: Shape of the whole array.
        dtype: Element type in the file.
        chunks: The array in consecutive pieces along the first axis, of any integer type.
        no_room: See `writing`.

    Raises:
        ValueError: It cannot.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with writing(path.parent, no_room), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with path.open("ab", buffering=0) as file:  # a buffer would try again as it is closed, and hide the first error
        for chunk in chunks:
            content = np.ascontiguousarray(chunk, dtype).data.cast("B")
            with writing(path.parent, no_room):
                while content:
                    content = content[file.write(content) :]
        with writing(path.parent, no_room):
            os.fsync(file.fileno())


@contextmanager
def writing(folder: Path, no_room: str) -> Iterator[None]:
    """Say which folder could not be written, and how to go on.

    Args:
        folder: Where something is written.
        no_room: What to say after the folder's name if it cannot be, with `{reason}` in it.

    Raises:
        ValueError: It cannot be.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{folder}: {no_room.format(reason=error.strerror)}") from error


@dataclass(frozen=True, slots=True)
class NpyFile:
    """A npy file whose size and header are known, so that its rows can be read without looking at them again.

    Args:
        path: Where it is; text, because a pool holds 20,000 of them.
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
        with Path(self.path).open("rb") as file:
            self.check_size(file.fileno())
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
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
        ValueError: It is none, is cut off, or is stored in Fortran order.
    """
    with path.open("rb") as file:
        try:
            shape, fortran_order, dtype = read_header(file)
        except EOFError as error:
            raise ValueError(f"{path}: damaged, or not a npy file ({error}). Copy or convert it again.") from error
        expected, size = file.tell() + math.prod(shape) * dtype.itemsize, file.seek(0, 2)
    if size != expected:
        raise ValueError(f"{path}: must have {expected:,} bytes, but has {size:,}. Copy or convert it again.")
    if fortran_order and len(shape) > 1:
        raise ValueError(f"{path}: stored in Fortran order. Save np.ascontiguousarray(…) instead.")
    return NpyFile(str(path), shape, dtype, size)


class RowReader(ABC):
    """Reads rows of npy files by number."""

    @abstractmethod
    def read(self, file: NpyFile, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return these rows.

        Args:
            file: Where they are.
            rows: Their numbers (n,), ascending.

        Raises:
            ValueError: The file has another size than it had.
        """


class MappedRows(RowReader):
    """Keeps every file mapped that it has read from. A pickle holds no map."""

    def __init__(self) -> None:
        self._maps: dict[str, NDArray[Any]] = {}

    def __reduce__(self) -> tuple[type["MappedRows"], tuple[()]]:
        return MappedRows, ()

    def read(self, file: NpyFile, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Copy the rows out of the map."""
        if file.path not in self._maps:
            self._maps[file.path] = file.map()
        return self._maps[file.path][rows]


class SingleRows(RowReader):
    """Opens a file, reads these rows and no byte more, and closes it again."""

    def read(self, file: NpyFile, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read one row after the other."""
        row_bytes, start = file.row_bytes, file.start
        handle = os.open(file.path, os.O_RDONLY)  # the opening of `pathlib` takes longer than all the rest
        try:
            file.check_size(handle)
            content = b"".join([os.pread(handle, row_bytes, start + row * row_bytes) for row in rows.tolist()])
        finally:
            os.close(handle)
        return np.frombuffer(content, file.dtype).reshape(-1, *file.shape[1:])
