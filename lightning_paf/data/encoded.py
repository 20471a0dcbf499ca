"""Encoded images as arrays: checks, conversion, and decoding in batches."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from rich.progress import Progress

from lightning_paf.data.fit import Fit
from lightning_paf.data.readers.npy import CHUNK_BYTES, Column
from lightning_paf.data.readers.pictures import Pictures, channels_of
from lightning_paf.data.synthetic.convert import writing
from lightning_paf.utils.files import npz_bytes, write_whole

AT_ONCE = 4096
"""Images that are submitted to the threads at once."""
QUIET = 2000
"""Number of images that are checked without a progress bar, in about a second."""
NAMED = 3
UNREADABLE = -1


class Index(NamedTuple):
    """Facts about the images of a part, found by decoding each of them once.

    Args:
        labels: int64 (N,); `UNREADABLE` for damaged images.
        sizes: Heights and widths (N, 2).
        channels: 1 or 3 (N,).
    """

    labels: NDArray[np.int64]
    sizes: NDArray[np.int32]
    channels: NDArray[np.int8]


def indexed(pictures: Pictures, path: Path) -> Index:
    """Decode every image once, or read the result of an earlier start from `path`."""
    if path.is_file():
        with np.load(path) as content:
            return Index(**content)
    rows = []
    with Progress(disable=len(pictures) < QUIET) as progress, ThreadPoolExecutor(os.cpu_count()) as threads:
        task = progress.add_task(f"Checking {path.name.partition('.')[0]} images", total=len(pictures))
        for start in range(0, len(pictures), AT_ONCE):
            part = range(start, min(start + AT_ONCE, len(pictures)))
            for row in threads.map(_inspected, repeat(pictures), part):
                rows.append(np.array(row, np.int32))
                progress.advance(task)
    labels, heights, widths, channels = np.stack(rows, 1)
    found = Index(labels.astype(np.int64), np.stack([heights, widths], 1), channels.astype(np.int8))
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, npz_bytes(**found._asdict()))
    return found


def readable_rows(pictures: Pictures, index: Index, where: str, skip_corrupt: bool) -> NDArray[np.int64]:
    """Return the indices of the images that can be read.

    Raises:
        ValueError: There are others, and `skip_corrupt` is false; or there are no such images.
    """
    damaged = np.flatnonzero(index.labels == UNREADABLE)
    if damaged.size:
        named = "; ".join(f"{pictures.name(row)} ({_reason(pictures, row)})" for row in damaged[:NAMED].tolist())
        more = f" and {damaged.size - NAMED} more" if damaged.size > NAMED else ""
        if not skip_corrupt or damaged.size == len(pictures):
            raise ValueError(
                f"{where}: all images must be readable, got {named}{more}. Replace or remove them, or pass "
                "--data.skip_corrupt true to leave them out."
            )
        rank_zero_warn(f"{where}: {damaged.size} of {len(pictures)} images are damaged and left out: {named}{more}.")
    return np.flatnonzero(index.labels != UNREADABLE)


def check_channels(
    pictures: Pictures, index: Index, rows: NDArray[np.int64], channels: int, where: str, convert: bool
) -> None:
    """Check that images have the channels of the network.

    Raises:
        ValueError: An image has others, and `convert` is false.
    """
    other = rows[index.channels[rows] != channels]
    if other.size and not convert:
        raise ValueError(
            f"{where}: images must have {channels} channel{'s' * (channels > 1)}, got {index.channels[other[0]]} in "
            f"{pictures.name(int(other[0]))} and {other.size} of {len(rows)} images. Pass --data.convert_channels true "
            "to convert them, with --data.channels 1 or 3."
        )


def fitted_size(
    pictures: Pictures, index: Index, rows: NDArray[np.int64], size: int | None, where: str
) -> tuple[int, int]:
    """Return height and width of the images in a batch.

    Raises:
        ValueError: `size` is None, and images have different sizes.
    """
    if size is not None:
        return size, size
    sizes = index.sizes[rows]
    other = np.flatnonzero((sizes != sizes[0]).any(1))
    if other.size:
        first, second = (
            "{} x {} in {}".format(*sizes[row], pictures.name(int(rows[row]))) for row in (0, int(other[0]))
        )
        raise ValueError(
            f"{where}: images must have one size (H x W) without data.size, got {first} and {second}. Pass e.g. "
            "--data.size 64."
        )
    return int(sizes[0][0]), int(sizes[0][1])


class EncodedImages:
    """Images that are decoded when they are used, indexed like an array (N, H, W, C).

    Args:
        pictures: The images.
        rows: Indices of the used ones (N,).
        fit: Size of the decoded images.
        shape: Their height and width.
        seed: Seed of random crops.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, pictures: Pictures, rows: NDArray[np.int64], fit: Fit, shape: tuple[int, int], seed: int = 0
    ) -> None:
        self.pictures, self.rows, self.fit, self.seed = pictures, rows, fit, seed
        self.shape = (len(rows), *shape, fit.channels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Decode the images of these indices (n,); a slice decodes nothing."""
        if isinstance(index, slice):
            return EncodedImages(self.pictures, self.rows[index], self.fit, self.shape[1:3], self.seed)
        return self._stacked([self.fit.centre(self._pixels(row)) for row in self.rows[index].tolist()])

    def drawn(self, index: NDArray[np.int64], epoch: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode images (n,) for training, each randomly cropped by (seed, epoch, image)."""
        if self.fit.random_crop is None:
            return self._stacked([self.fit.centre(self._pixels(row)) for row in self.rows[index].tolist()])
        draws = zip(self.rows[index].tolist(), epoch.tolist(), strict=True)
        return self._stacked(
            [self.fit.random(self._pixels(row), np.random.default_rng([self.seed, now, row])) for row, now in draws]
        )

    def column(self) -> Column:
        """Return the images in their order, decoded by threads in chunks."""
        step = max(1, 4 * CHUNK_BYTES // int(np.prod(self.shape[1:])))

        def chunks() -> Iterator[NDArray[np.uint8]]:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                for start in range(0, len(self), step):
                    rows = self.rows[start : start + step].tolist()
                    yield self._stacked(list(threads.map(lambda row: self.fit.centre(self._pixels(row)), rows)))

        return Column(self.shape, self.dtype, chunks)

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        return self.pictures.read(row, self.fit.channels)

    def _stacked(self, images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)


def _inspected(pictures: Pictures, index: int) -> tuple[int, int, int, int]:
    """Return label, height, width and channels, or four times `UNREADABLE`."""
    try:
        return _facts(pictures, index)
    except Exception:  # decoders raise many kinds; `_reason` repeats it
        return (UNREADABLE,) * 4


def _facts(pictures: Pictures, index: int) -> tuple[int, int, int, int]:
    image, label = pictures.open(index)
    with image:
        height, width = image.height, image.width
        channels = channels_of(image)
        image.draft(None, (1, 1))  # decodes a JPEG completely, but in an eighth of its size
        image.load()
    return label, height, width, channels


def _reason(pictures: Pictures, index: int) -> str:
    from PIL import UnidentifiedImageError

    try:
        _facts(pictures, index)
    except UnidentifiedImageError:
        return "empty, or not in a known format"
    except Exception as error:
        return getattr(error, "strerror", None) or str(error).split("\n")[0]
    return "changed meanwhile"
