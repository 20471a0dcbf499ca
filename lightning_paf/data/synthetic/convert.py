"""Turn published files into `image.npy` + `label.npy`, once: plain arrays can be memory-mapped, archives cannot."""

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from lightning_paf.data.checks import check_images, check_label_header, check_labels, check_same_size
from lightning_paf.data.readers.archives import open_archive
from lightning_paf.data.readers.columns import Column
from lightning_paf.data.readers.folder import IMAGE_FILE, LABEL_FILE

QUIET_BYTES = 64 * 2**20  # about a second: no bar below this


def is_converted(folder: Path) -> bool:
    """Tell whether a folder holds `image.npy` and `label.npy`."""
    return (folder / IMAGE_FILE).is_file() and (folder / LABEL_FILE).is_file()


def converted_folder(source: Path, cache_dir: Path | None) -> Path:
    """Name the folder of a source's converted arrays: next to it, or in `cache_dir`.

    Size and modification time are part of the name, so that a changed source is converted again. Nothing ever removes
    the folder of an older version, because a running job may have it mapped.
    """
    if source.is_dir():
        return source
    if not source.is_file():
        raise ValueError(f"{source}: there is no such file or folder. Check --data.synthetic.")
    stat = source.stat()
    version = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return (cache_dir or source.parent) / f"{source.name}.{version}"


def convert_all(conversions: Sequence[tuple[Path, Path]], like: Sequence[int], num_classes: int) -> None:
    """Convert what is not converted yet, with one progress bar if it takes long.

    Args:
        conversions: Sources, each with its folder; where both are the same there is nothing to do.
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
            convert(source, folder, like, num_classes, lambda share: progress.advance(task, share))


def convert(
    source: Path,
    folder: Path,
    like: Sequence[int],
    num_classes: int,
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Write the arrays of `source` into `folder`, unless it exists.

    Memory stays constant (a pickle excepted). One process converts, and others wait for it, on all machines that share
    the folder. The arrays are written to a temporary folder which is then renamed: a process that is killed leaves
    nothing half-written, and the next one removes the temporary folder.

    Args:
        source: An archive.
        folder: As `converted_folder` names it.
        like: Shape (…, H, W, C) that the images must have.
        num_classes: Labels must be 0 .. num_classes - 1.
        advance: Called with the fraction of the images that have been written since the last call.

    Raises:
        ValueError: The archive is damaged or does not hold such images and labels, or the folder cannot be written.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    if is_converted(folder):
        with suppress(OSError):
            lock.unlink()  # of a process that was killed after the renaming
        return
    with _only_process(lock):
        if is_converted(folder):
            return
        for leftover in folder.parent.glob(f".{glob.escape(source.name)}.{'?' * 12}.{'?' * 8}"):
            shutil.rmtree(leftover, ignore_errors=True)
        with open_archive(source) as archive, _temporary_folder(folder) as temporary:
            check_images(archive.image.shape, archive.image.dtype, like[-1], str(source))
            check_same_size(archive.image.shape, like, str(source))
            check_label_header(archive.label.shape, archive.label.dtype, archive.image.shape[0], str(source))
            label, image = temporary / LABEL_FILE, temporary / IMAGE_FILE
            write_npy(label, archive.label.shape, np.dtype(np.int64), archive.label.chunks())
            check_labels(np.load(label, mmap_mode="r"), num_classes, str(source))
            write_npy(image, archive.image.shape, np.dtype(np.uint8), _reported(archive.image, advance))
            _move_into_place(temporary, folder)


@contextmanager
def _only_process(lock: Path) -> Iterator[None]:
    """Hold a lock, which the system releases when the process ends, however that happens."""
    with _acquire(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _acquire(lock: Path) -> IO[bytes]:
    while True:
        with _writing(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("ab")
            fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()  # its last holder has removed the file, so that others lock a new one


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    with _writing(folder.parent):
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        temporary.chmod(0o755)  # mkdtemp hides it from everyone else, who may want to share the arrays
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, folder: Path) -> None:
    with _writing(folder.parent):
        try:
            temporary.rename(folder)
        except OSError:
            if not is_converted(folder):  # otherwise another machine was faster, and this one did not see it
                raise


def _reported(column: Column, advance: Callable[[float], None]) -> Iterator[NDArray[Any]]:
    for chunk in column.chunks():
        yield chunk
        advance(len(chunk) / column.shape[0])


def write_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype, chunks: Iterable[NDArray[Any]]) -> None:
    """Write an array in pieces, and force it to the disk: a rename that survives a power cut must not outlive the data.

    Args:
        path: File to write.
        shape: Shape of the whole array.
        dtype: Element type in the file.
        chunks: The array in consecutive pieces along the first axis, of any integer type.

    Raises:
        ValueError: It cannot.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with _writing(path.parent), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with path.open("ab", buffering=0) as file:  # a buffer would try again as it is closed, and hide the first error
        for chunk in chunks:
            content = np.ascontiguousarray(chunk, dtype).data.cast("B")
            with _writing(path.parent):
                while content:
                    content = content[file.write(content) :]
        with _writing(path.parent):
            os.fsync(file.fileno())


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Name the folder that cannot be written, and the option that chooses another one."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot write the converted arrays here ({error.strerror}). "
            "Pass --data.cache_dir FOLDER with room for them, on a file system with locks."
        ) from error
