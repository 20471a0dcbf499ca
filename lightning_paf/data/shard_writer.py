"""Write a pool of many shards, with its manifest."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.checks import check_images, check_label_header, check_labels
from lightning_paf.data.manifest import LABEL_TYPE, Manifest, Shard, write_manifest
from lightning_paf.data.readers.archives import open_archive
from lightning_paf.data.readers.columns import Archive, Column
from lightning_paf.data.readers.folder import open_folder
from lightning_paf.data.readers.npy import NpyFile, inspect_npy, write_npy, writing
from lightning_paf.data.shard_check import class_counts, list_file

MOST_CLASSES = 2**15  # the manifest counts the images of each
NO_ROOM = "cannot write a pool here ({reason}). Give the name of a folder where there is room for it, e.g. --out POOL."


def write_pool(sources: Sequence[Path], folder: Path, shard_size: int, advance: Callable[[int, int], None]) -> Manifest:
    """Copy images of all sources, in their order, into shards of `shard_size` images (the last one may have fewer).

    Memory stays constant (a pickle excepted). Everything is written to `FOLDER.partial`, which is then renamed.

    Args:
        sources: Archives, converted folders and pools, all with images of one size.
        folder: The pool to write; it must not exist.
        shard_size: Images in a shard.
        advance: Told how many images have been written since the last call, and how many there are in all.

    Returns:
        What the pool holds.

    Raises:
        ValueError: A source is damaged, holds something else, or images of another size than the first one; or the
            folder exists or cannot be written.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists. Give the name of a new folder.")
    shape = _common_shape(sources)
    partial = _partial_folder(folder)
    try:
        manifest = _write_shards(sources, partial, shape, shard_size, lambda images: advance(images, shape[0]))
        with writing(folder.parent, NO_ROOM):
            write_manifest(partial, manifest)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _partial_folder(folder: Path) -> Path:
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        raise ValueError(
            f"{partial} exists: another process writes this pool now, or was interrupted. Remove it in the latter case."
        )
    with writing(folder.parent, NO_ROOM):
        partial.mkdir(parents=True)
    return partial


def _open_source(source: Path) -> AbstractContextManager[Archive]:
    if not source.is_dir():
        return open_archive(source)
    shards = open_folder(source).shards
    return nullcontext(Archive(_chained([s.image for s in shards]), _chained([s.label for s in shards])))


def _chained(files: list[NpyFile]) -> Column:
    """Rows of several files, one after the other."""
    rows = sum(file.shape[0] for file in files)
    return Column(
        (rows, *files[0].shape[1:]), files[0].dtype, lambda: (chunk for file in files for chunk in file.chunks())
    )


def _common_shape(sources: Sequence[Path]) -> tuple[int, ...]:
    """Shape (N, H, W, C) of all images together."""
    shapes: list[tuple[int, ...]] = []
    for source in sources:
        with _open_source(source) as archive:
            shape = archive.image.shape
            check_images(shape, archive.image.dtype, 1 if shape[-1:] == (1,) else 3, str(source))
            check_label_header(archive.label.shape, archive.label.dtype, shape[0], str(source))
        if shapes and shape[1:] != shapes[0][1:]:
            raise ValueError(
                f"{source}: images must have one size (H, W, C) in all sources, but have {shape[1:]} here and "
                f"{shapes[0][1:]} in {sources[0]}. Write a pool of each size."
            )
        shapes.append(shape)
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _write_shards(
    sources: Sequence[Path], folder: Path, shape: tuple[int, ...], shard_size: int, advance: Callable[[int], None]
) -> Manifest:
    rows = [min(shard_size, shape[0] - first) for first in range(0, shape[0], shard_size)]
    label_paths, image_paths = (
        [folder / f"shard-{shard:05d}.{kind}.npy" for shard in range(len(rows))] for kind in ("label", "image")
    )
    _write_files(_labels_of(sources), label_paths, rows, (), LABEL_TYPE)
    chunks = (chunk for source in sources for chunk in _chunks_of(source, "image"))
    _write_files(_reported(chunks, advance), image_paths, rows, shape[1:], np.dtype(np.uint8))
    classes = [class_counts(inspect_npy(path)) for path in label_paths]
    shards = zip(rows, map(list_file, image_paths), map(list_file, label_paths), classes, strict=True)
    return Manifest(shape[1:], [Shard(*shard) for shard in shards])


def _chunks_of(source: Path, column: str) -> Iterator[NDArray[Any]]:
    with _open_source(source) as archive:
        yield from getattr(archive, column).chunks()


def _labels_of(sources: Sequence[Path]) -> Iterator[NDArray[Any]]:
    for source in sources:
        for labels in _chunks_of(source, "label"):
            check_labels(labels, MOST_CLASSES, str(source))
            yield labels


def _reported(chunks: Iterator[NDArray[Any]], advance: Callable[[int], None]) -> Iterator[NDArray[Any]]:
    for chunk in chunks:
        advance(len(chunk))
        yield chunk


def _write_files(
    chunks: Iterator[NDArray[Any]], paths: list[Path], rows: list[int], row_shape: tuple[int, ...], dtype: np.dtype
) -> None:
    """Divide rows among npy files: as many as `rows` says for each."""
    left = _Rows(chunks)
    for path, count in zip(paths, rows, strict=True):
        write_npy(path, (count, *row_shape), dtype, left.take(count), NO_ROOM)


class _Rows:
    """Rows from a stream of chunks of any length."""

    def __init__(self, chunks: Iterator[NDArray[Any]]) -> None:
        self._chunks = chunks
        self._left: NDArray[Any] | None = None

    def take(self, count: int) -> Iterator[NDArray[Any]]:
        """The next `count` rows, in pieces."""
        while count:
            chunk = next(self._chunks) if self._left is None else self._left
            piece, self._left = chunk[:count], chunk[count:] if len(chunk) > count else None
            count -= len(piece)
            yield piece
