"""Synthetic volumes: textured shapes of six classes on a textured background."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.readers.volumes import Subject

Array = NDArray[np.float64]

_SHAPES: Sequence[Callable[[Array, Array], NDArray[np.bool_]]] = (
    lambda u, v: u**2 + v**2 < 1,  # disc
    lambda u, v: np.maximum(abs(u), abs(v)) < 0.9,  # square
    lambda u, v: abs(u**2 + v**2 - 0.75) < 0.45,  # ring
    lambda u, v: (np.minimum(abs(u), abs(v)) < 0.35) & (np.maximum(abs(u), abs(v)) < 1.1),  # cross
    lambda u, v: (np.maximum(abs(u), abs(v)) < 1.1) & (np.floor(2 * u + 3) % 2 == 0),  # stripes
    lambda u, v: np.hypot(u, v) < 0.8 + 0.3 * np.sin(3 * np.arctan2(v, u)),  # blob
)
CLASSES = len(_SHAPES)
"""Labels are 1 to `CLASSES`."""


def synthetic_subjects(subjects: int, slices: int, channels: int, size: int, seed: int) -> list[Subject]:
    """Make volumes of two shapes of different classes.

    Their cross-sections grow and shrink like those of organs.

    The first and the last slices are empty. Classes are balanced in every fifth volume, such as those for the test.

    Args:
        subjects: Number of volumes.
        slices: Slices of a volume.
        channels: Equal channels of the images.
        size: Height and width, at least 16.
        seed: Seed of all numbers.
    """
    return [
        _subject(number, slices, channels, size, np.random.default_rng([seed, number])) for number in range(subjects)
    ]


def _subject(number: int, slices: int, channels: int, size: int, rng: np.random.Generator) -> Subject:
    images = np.stack([0.2 + 0.2 * _texture(size, rng) for _ in range(slices)])
    masks = np.zeros(images.shape, np.uint8)
    group, rest = divmod(number, 5)
    first = group % CLASSES
    second = (first + 1 + (group // CLASSES + rest) % (CLASSES - 1)) % CLASSES
    rows, columns = np.indices((size, size)) / size
    side = rng.permutation([0.27, 0.73])
    for middle, label in zip(side, (first, second), strict=True):
        row, column, angle = rng.uniform(0.3, 0.7), middle + rng.uniform(-0.04, 0.04), rng.uniform(-0.4, 0.4)
        radius, level, drift = (
            rng.uniform(0.16, 0.23),
            0.5 + 0.08 * label + rng.uniform(-0.03, 0.03),
            rng.normal(0, 0.03, 2),
        )
        for index, height in enumerate(np.linspace(-1.2, 1.2, slices)):
            width = radius * np.sqrt(max(1 - height**2, 1e-6))
            y, x = rows - row - drift[0] * height, columns - column - drift[1] * height
            u, v = (np.cos(angle) * x + np.sin(angle) * y) / width, (np.cos(angle) * y - np.sin(angle) * x) / width
            inside = _SHAPES[label](u, v) & (abs(height) < 1)
            images[index][inside] = (level + 0.15 * (_texture(size, rng) - 0.5))[inside]
            masks[index][inside] = label + 1
    noisy = (images + rng.normal(0, 0.02, images.shape)).clip(0, 1)
    grey = np.round(255 * noisy).astype(np.uint8)[..., None]
    return Subject(f"shapes_{number:03d}", grey.repeat(channels, axis=3), masks)


def _texture(size: int, rng: np.random.Generator) -> Array:
    """Smooth noise (size, size) in [0, 1], from random values on a coarse grid."""
    coarse, grid = rng.random((5, 5)), np.linspace(0, 4, size)
    weights = (1 - abs(grid[:, None] - np.arange(5))).clip(0)
    smooth: Array = weights @ coarse @ weights.T
    return smooth
