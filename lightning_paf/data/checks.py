"""Rules for images and labels.

The argument `where` is the start of each message: a file, or the name of a dataset.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.readers.archives import UNLABELLED
from lightning_paf.data.readers.npy import Column, NpyFile


@contextmanager
def readable() -> Iterator[None]:
    """Name the file of an error of the file system.

    Raises:
        ValueError: Instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{error.filename or 'The images'} must be readable, got {error.strerror or error}. Check permissions and "
            "disk."
        ) from error


def check_images(image: Column | NpyFile, channels: int, where: str) -> None:
    """Check the header of an image array: uint8, (N, H, W, C), N > 0.

    Raises:
        ValueError: The array has another type or shape.
    """
    shape = image.shape
    rule = f"{where}: images must be uint8 of shape (N, H, W, {channels}), got {image.dtype} of shape {shape}."
    if len(shape) != 4:
        raise ValueError(f"{rule} Reshape them.")
    if shape[3] != channels and shape[1] == channels:
        raise ValueError(f"{rule} This is NCHW: store images.transpose(0, 2, 3, 1).")
    if shape[3] != channels:
        raise ValueError(f"{rule} Pass --data.channels {shape[3]} with --data.dataset npz, or convert them.")
    if image.dtype != np.uint8:
        raise ValueError(
            f"{rule} Store pixels 0 to 255; for floats in [0, 1]: np.round(255 * images).astype(np.uint8)."
        )
    if 0 in shape:
        raise ValueError(f"{rule} Store at least one image.")


def check_same_size(shape: Sequence[int], expected: Sequence[int], where: str) -> None:
    """Check that images have the (H, W, C) of the real training images.

    Raises:
        ValueError: They do not.
    """
    if tuple(shape[1:]) != tuple(expected[1:]):
        raise ValueError(
            f"{where}: images must have the size of the real ones, (H, W, C) = {tuple(expected[1:])}, "
            f"got {tuple(shape[1:])}. Resize them, or pass the --data.dataset that they belong to."
        )


def check_label_header(label: Column | NpyFile, count: int, where: str) -> None:
    """Check the header of a label array: integers, one for each of `count` images.

    Raises:
        ValueError: The array has another type or shape.
    """
    if label.dtype.kind not in "iu":
        raise ValueError(f"{where}: labels must be integers, got {label.dtype}. Store class numbers, e.g. as int64.")
    if label.shape != (count,):
        raise ValueError(
            f"{where}: labels of {count} images must have shape ({count},), got {label.shape}. "
            "Store one class number for each image."
        )


def check_labels(labels: NDArray[np.int64], num_classes: int, where: str) -> None:
    """Check that every label is one of 0 .. num_classes - 1.

    Raises:
        ValueError: One is not.
    """
    low, high = int(labels.min()), int(labels.max())
    if low == high == UNLABELLED:
        raise ValueError(f"{where}: images must have labels except in `predict`, got none. Store them as `label` (N,).")
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{where}: labels must be 0 to {num_classes - 1}, got {low} to {high}. "
            "Renumber them, or pass their --data.dataset (and --data.num_classes for npz)."
        )


def check_classes(counts: NDArray[np.int64], where: str, names: Sequence[str] = ()) -> None:
    """Check that every class occurs, given the number of images of each class (K,).

    Raises:
        ValueError: A class has no image.
    """
    missing = np.flatnonzero(counts == 0)
    if missing.size:
        named = ", ".join(names[label] if names else str(label) for label in missing[:10]) + (
            ", …" if missing.size > 10 else ""
        )
        raise ValueError(
            f"{where}: all {len(counts)} classes must occur, got no image of {named}. "
            "Add the missing classes; a file sorted by class may be truncated."
        )
