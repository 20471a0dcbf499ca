"""Picture of a pool next to real images."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.readers.archives import open_archive
from lightning_paf.data.sources import ImageSet

SHEET_CLASSES, SHEET_REAL, SHEET_SYNTHETIC = 20, 5, 10


def first_images(path: Path) -> tuple[ImageSet, NDArray[np.int64]]:
    """Read the first images of a pool, and all labels."""
    with open_archive(path) as pool:
        labels, images = np.concatenate(list(pool.label.chunks())), next(iter(pool.image.chunks()))
    return ImageSet(images, labels[: len(images)]), labels


def save_contact_sheet(train: ImageSet | None, pool: ImageSet, num_classes: int, out: Path) -> Path:
    """Write a PNG with a row for each class: training images, a gap, synthetic ones."""
    from matplotlib.image import imsave

    def row(images: ImageSet, label: int, length: int) -> NDArray[np.uint8]:
        tiles = np.full((length, *images.images.shape[1:]), 255, np.uint8)
        found = images.images[np.flatnonzero(images.labels == label)[:length]]
        tiles[: len(found)] = found
        return np.pad(np.concatenate(tiles, axis=1), ((1, 1), (1, 1), (0, 0)), constant_values=255)

    columns = [(pool, SHEET_SYNTHETIC)] if train is None else [(train, SHEET_REAL), (pool, SHEET_SYNTHETIC)]
    rows = [
        np.concatenate([row(images, label, length) for images, length in columns], axis=1)
        for label in range(min(num_classes, SHEET_CLASSES))
    ]
    sheet = np.concatenate(rows)
    zoom = max(1, 960 // sheet.shape[1])
    sheet = sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
    path = out.with_suffix(".png")
    imsave(path, np.broadcast_to(sheet, (*sheet.shape[:2], 3)))
    return path
