"""One-time conversion of archives to npy arrays, which can be memory-mapped."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import Progress

from lightning_paf.data.checks import check_images, check_label_header, check_labels, check_same_size
from lightning_paf.data.readers.archives import open_archive
from lightning_paf.data.readers.folder import IMAGE_FILE, LABEL_FILE
from lightning_paf.data.readers.npy import Column
from lightning_paf.utils.files import write_whole

QUIET_BYTES = 64 * 2**20  # about a second of work; no progress bar below it


def is_converted(folder: Path) -> bool:
    """Check whether a folder holds `image.npy` and `label.npy`."""
    return (folder / IMAGE_FILE).is_file() and (folder / LABEL_FILE).is_file()


def converted_folder(source: Path, cache_dir: Path | None) -> Path:
    """Return the folder for the converted arrays of a source.

    It is next to the source, or in `cache_dir`. The name contains a hash of size and modification time, so a changed
    source is converted again. Folders of older versions are kept, because a running job may have mapped them. A source
    that is a folder is returned unchanged.
    """
    if source.is_dir():
        return source
    if not source.is_file():
        raise ValueError(f"{source}: there is no such file or folder. Check --data.synthetic.")
    stat = source.stat()
    version = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return (cache_dir or source.parent) / f"{source.name}.{version}"


def convert_all(conversions: Sequence[tuple[Path, Path]], like: Sequence[int], num_classes: int) -> None:
    """Convert all sources that are not converted yet, with a progress bar.

    Args:
        conversions: Sources and their folders; nothing is done where both are the same.
        like: Shape (…, H, W, C) that the images must have.
        num_classes: Labels must be 0 .. num_classes - 1.

    Raises:
        ValueError: See `convert`.
    """
    archives = [(source, folder) for source, folder in conversions if source != folder]
    quiet = sum(source.stat().st_size for source, folder in archives if not is_converted(folder)) < QUIET_BYTES
    with Progress(disable=quiet) as progress:
        task = progress.add_task("", total=len(archives))
        for done, (source, folder) in enumerate(archives):
            progress.update(task, description=f"Converting {source.name}", completed=done)
            convert(source, folder, like, num_classes, lambda fraction: progress.advance(task, fraction))


def convert(
    source: Path,
    folder: Path,
    like: Sequence[int],
    num_classes: int,
    advance: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Write the arrays of `source` into `folder`, unless they exist.

    Memory use is constant (except for a pickle). One process converts while others wait, on all machines that share the
    folder. Each array is written atomically. An unfinished folder is removed after an error, or by the next process.

    Args:
        source: An archive.
        folder: The result of `converted_folder`.
        like: Shape (…, H, W, C) that the images must have.
        num_classes: Labels must be 0 .. num_classes - 1.
        advance: Called with the fraction of the images that were written since the last call.

    Raises:
        ValueError: The archive is damaged or does not hold such images and labels, or the folder cannot be written.
    """
    with converting(folder, source.name) as needed:
        if not needed:
            return
        with open_archive(source) as archive:
            check_images(archive.image, like[-1], str(source))
            check_same_size(archive.image.shape, like, str(source))
            check_label_header(archive.label, archive.image.shape[0], str(source))
            write_array(folder / LABEL_FILE, source, archive.label, np.dtype(np.int64))
            check_labels(np.load(folder / LABEL_FILE, mmap_mode="r"), num_classes, str(source))
            write_array(folder / IMAGE_FILE, source, archive.image, np.dtype(np.uint8), advance)


@contextmanager
def converting(folder: Path, name: str) -> Iterator[bool]:
    """Hold the lock of a folder `NAME.VERSION` while its arrays are written.

    Yields:
        Whether this process must write them; false where they exist.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    if is_converted(folder):
        with suppress(OSError):
            lock.unlink()  # of a process that was killed at the end of its conversion
        yield False
        return
    with _locked(lock):
        if is_converted(folder):
            yield False
            return
        _remove_unfinished(folder.parent, name)
        try:
            yield True
        finally:
            if not is_converted(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _remove_unfinished(parent: Path, name: str) -> None:
    for folder in parent.glob(escape(name) + "." + "[0-9a-f]" * 12):
        if not is_converted(folder):
            shutil.rmtree(folder, ignore_errors=True)


def write_array(
    path: Path, source: Path, column: Column, dtype: np.dtype, advance: Callable[[float], None] | None = None
) -> None:
    """Write an array of a source as an npy file, chunk by chunk."""
    header = BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": column.shape})

    def content() -> Iterator[Any]:
        yield header.getvalue()
        try:
            for chunk in column.chunks():
                yield np.ascontiguousarray(chunk, dtype).data
                if advance:
                    advance(len(chunk) / column.shape[0])
        except OSError as error:
            raise ValueError(f"{source}: must be readable, got {error.strerror}. Check the disk.") from error

    with writing(path.parent.parent):
        path.parent.mkdir(exist_ok=True)
        write_whole(path, content())


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends in any way."""
    with _acquire(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _acquire(lock: Path) -> IO[bytes]:
    while True:
        with writing(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                rank_zero_info(f"Waiting for another process that writes {lock.name[1:-5]}.")
                fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()  # the previous owner has removed the file, and others lock a new one


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Convert errors of the file system to one with the folder and the option."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot write the converted arrays here ({error.strerror}). "
            "Pass --data.cache_dir FOLDER with enough space, on a file system with locks."
        ) from error
