"""Turn published archives into `image.npy` + `label.npy`, once: plain arrays can be memory-mapped, archives cannot."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from lightning_paf.data.checks import check_images, check_label_header, check_labels, check_same_size
from lightning_paf.data.manifest import MANIFEST_FILE, is_pool
from lightning_paf.data.readers.archives import OPENERS, open_archive
from lightning_paf.data.readers.columns import Column
from lightning_paf.data.readers.npy import write_npy, writing

IMAGE_FILE, LABEL_FILE = "image.npy", "label.npy"
QUIET_BYTES = 64 * 2**20  # about a second: no bar below this
NO_ROOM = "cannot write the converted arrays here ({reason}). Pass --data.cache_dir FOLDER with room for them."
HELD_OUT = re.compile(r"(test|validation|valid|val|dev)(?![a-z])")


def is_converted(folder: Path) -> bool:
    """Tell whether a folder holds `image.npy` and `label.npy`."""
    return (folder / IMAGE_FILE).is_file() and (folder / LABEL_FILE).is_file()


def find_sources(paths: Sequence[Path]) -> list[Path]:
    """List the archives, and the folders that need no conversion, that `paths` stand for.

    Args:
        paths: Archives, converted folders, pools with a manifest, or folders of archives (such as the six parts of
            cifar5m).

    Raises:
        ValueError: A folder holds none of them, or test images beside others.
    """
    sources: list[Path] = []
    for path in paths:
        sources += _archives_in(path) if path.is_dir() and not (is_converted(path) or is_pool(path)) else [path]
    return sources


def _archives_in(folder: Path) -> list[Path]:
    inside = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in OPENERS)
    if not inside:
        raise ValueError(
            f"{folder}: this folder holds no {', '.join(OPENERS)} file and no {MANIFEST_FILE}. Check --data.synthetic."
        )
    held_out = [file for file in inside if HELD_OUT.match(file.stem)]
    if held_out and len(held_out) < len(inside):
        raise ValueError(
            f"{folder}: all files of a folder are trained on, but {held_out[0].name} is held out by its name. "
            "Put the training files into a folder of their own."
        )
    return inside


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


def convert_all(conversions: Sequence[tuple[Path, Path]], like: Sequence[int], num_classes: int) -> None:
    """Convert what is not converted yet, with one progress bar if it takes long.

    Args:
        conversions: Sources, each with its folder; where both are the same there is nothing to do.
        like: Shape (…, H, W, C) that the images must have.
        num_classes: Labels must be 0 .. num_classes - 1.

    Raises:
        ValueError: See `convert`.
    """
    waiting = [(source, folder) for source, folder in conversions if source != folder and not is_converted(folder)]
    quiet = sum(source.stat().st_size for source, _ in waiting) < QUIET_BYTES
    with Progress(disable=quiet) as progress:
        task = progress.add_task("", total=len(waiting))
        for source, folder in waiting:
            progress.update(task, description=f"Converting {source.name}")
            convert(source, folder, like, num_classes, lambda share: progress.advance(task, share))


def convert(
    source: Path,
    folder: Path,
    like: Sequence[int],
    num_classes: int,
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Write the arrays of `source` into `folder`, unless it exists.

    Memory stays constant (a pickle excepted). The arrays are written to a temporary folder which is then renamed: a
    crash leaves nothing half-written, and of several processes that convert at once the first to finish wins.

    Args:
        source: An archive.
        folder: As `converted_folder` names it.
        like: Shape (…, H, W, C) that the images must have.
        num_classes: Labels must be 0 .. num_classes - 1.
        advance: Told the share of the images that have been written since the last call.

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
            label, image = temporary / LABEL_FILE, temporary / IMAGE_FILE
            write_npy(label, archive.label.shape, np.dtype(np.int64), archive.label.chunks(), NO_ROOM)
            check_labels(np.load(label, mmap_mode="r"), num_classes, str(source))
            write_npy(image, archive.image.shape, np.dtype(np.uint8), _reported(archive.image, advance), NO_ROOM)
            _move_into_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary_folder(folder: Path) -> Path:
    with writing(folder.parent, NO_ROOM):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    temporary.chmod(0o755)  # mkdtemp hides it from everyone else, who may want to share the arrays
    return temporary


def _move_into_place(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not is_converted(folder):  # otherwise another process was faster, with the same content
            raise


def _reported(column: Column, advance: Callable[[float], None]) -> Iterator[NDArray[Any]]:
    for chunk in column.chunks():
        yield chunk
        advance(len(chunk) / column.shape[0])
