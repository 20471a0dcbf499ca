"""Turn published archives into `image.npy` + `label.npy`, once: plain arrays can be memory-mapped, archives cannot."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.progress import Progress

from lightning_paf.data.archives import OPENERS, Column, open_archive
from lightning_paf.data.checks import check_images, check_label_header, check_labels, check_same_size

IMAGE_FILE, LABEL_FILE = "image.npy", "label.npy"
QUIET_BYTES = 64 * 2**20  # about a second: no bar below this


def is_converted(folder: Path) -> bool:
    """Tell whether a folder holds `image.npy` and `label.npy`."""
    return (folder / IMAGE_FILE).is_file() and (folder / LABEL_FILE).is_file()


def find_sources(paths: Sequence[Path]) -> list[Path]:
    """List the archives, and the folders that are already converted, that `paths` stand for.

    Args:
        paths: Archives, converted folders, or folders of archives (such as the six parts of cifar5m).

    Raises:
        ValueError: A folder holds neither.
    """
    sources: list[Path] = []
    for path in paths:
        if path.is_dir() and not is_converted(path):
            inside = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in OPENERS)
            if not inside:
                raise ValueError(f"{path}: this folder holds no {', '.join(OPENERS)} file. Check --data.synthetic.")
            sources += inside
        else:
            sources.append(path)
    return sources


def converted_folder(source: Path, cache_dir: Path | None) -> Path:
    """Name the folder of a source's converted arrays: beside it, or in `cache_dir`.

    Size and modification time are part of the name, so that a changed source is converted anew. Nothing ever removes
    the folder of an older version, because a running job may have it mapped.
    """
    if source.is_dir():
        return source
    if not source.is_file():
        raise ValueError(f"{source}: there is no such file or folder. Check --data.synthetic.")
    stat = source.stat()
    version = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return (cache_dir or source.parent) / f"{source.name}.{version}"


def convert(source: Path, folder: Path, like: Sequence[int], num_classes: int) -> None:
    """Write the arrays of `source` into `folder`, unless it exists.

    Memory stays constant (a pickle excepted). The arrays are written to a temporary folder which is then renamed: a
    crash leaves nothing half-written, and of several processes that convert at once the first to finish wins.

    Args:
        source: An archive.
        folder: As `converted_folder` names it.
        like: Shape (…, H, W, C) that the images must have.
        num_classes: Labels must be 0 .. num_classes - 1.

    Raises:
        ValueError: The archive is damaged or does not hold such images and labels, or the folder cannot be written.
    """
    if is_converted(folder):
        return
    with open_archive(source) as archive:
        check_images(archive.image.shape, archive.image.dtype, like[-1], str(source))
        check_same_size(archive.image.shape, like, str(source))
        check_label_header(archive.label.shape, archive.label.dtype, archive.image.shape[0], str(source))
        temporary = _temporary_folder(folder)
        try:
            _write(archive.label, temporary / LABEL_FILE, np.dtype(np.int64), "")
            check_labels(np.load(temporary / LABEL_FILE, mmap_mode="r"), num_classes, str(source))
            _write(archive.image, temporary / IMAGE_FILE, np.dtype(np.uint8), f"Converting {source.name}")
            _move_into_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary_folder(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise ValueError(
            f"{folder.parent}: cannot write the converted arrays here ({error.strerror}). "
            "Pass --data.cache_dir FOLDER with room for them."
        ) from error
    temporary.chmod(0o755)  # mkdtemp hides it from everyone else, who may want to share the arrays
    return temporary


def _move_into_place(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not is_converted(folder):  # otherwise another process was faster, with the same content
            raise


def _write(column: Column, target: Path, dtype: np.dtype, title: str) -> None:
    """Copy a column to a npy file, with a progress bar if it is long."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": column.shape}
    with target.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in _with_progress(column, title):
            file.write(np.ascontiguousarray(chunk, dtype).data)
        file.flush()
        os.fsync(file.fileno())  # a rename that survives a power cut must not outlive the data


def _with_progress(column: Column, title: str) -> Iterator[np.ndarray]:
    size = int(np.prod(column.shape)) * column.dtype.itemsize
    with Progress(disable=not title or size < QUIET_BYTES) as progress:
        task = progress.add_task(title, total=size)
        for chunk in column.chunks():
            yield chunk
            progress.advance(task, chunk.nbytes)
