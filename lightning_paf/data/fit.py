"""Resizing and cropping of images to one size."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from lightning_paf.specs import LARGEST_SIDE
from lightning_paf.utils.options import checked

RATIO = 4 / 3
"""Largest ratio of the sides of a random crop, as in torchvision."""
ATTEMPTS = 10


@dataclass(frozen=True)
class Fit:
    """The size of images in a batch.

    Args:
        size: Height and width of the centre crop; None keeps images unchanged.
        resize: Length of the shorter side before the centre crop; None for `size`.
        random_crop: Smallest area of a random crop as a fraction of the training image; None for the centre crop.
        channels: 1 or 3.

    Raises:
        ValueError: An argument is out of range.
    """

    size: int | None
    resize: int | None
    random_crop: float | None
    channels: int

    def __post_init__(self) -> None:
        checked("channels", self.channels, self.channels in (1, 3), "1 or 3 for encoded images", 3, "--data")
        if self.size is None and (self.resize, self.random_crop) != (None, None):
            raise ValueError("data.size must be set for resize and random_crop, got None. Pass e.g. --data.size 224.")
        if self.resize is not None:
            least = self.size or 1
            checked("resize", self.resize, self.resize >= least, f"at least data.size={least}", least, "--data")
            rule = f"at most {LARGEST_SIDE} pixels"
            checked("resize", self.resize, self.resize <= LARGEST_SIDE, rule, least, "--data")
        if self.random_crop is not None:
            checked("random_crop", self.random_crop, 0 < self.random_crop <= 1, "in (0, 1]", 0.08, "--data")

    def centre(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an image (H, W, C), and crop its centre to (size, size, C)."""
        if self.size is None:
            return image
        shorter, scaled = min(image.shape[:2]), self.resize or self.size
        height, width = (int(scaled * side / shorter) for side in image.shape[:2])
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return _resized(image, height, width)[top : top + self.size, left : left + self.size]

    def random(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Resize a random part of an image (H, W, C) to (size, size, C)."""
        assert self.size is not None
        assert self.random_crop is not None
        top, left, height, width = random_box(image.shape[0], image.shape[1], self.random_crop, rng)
        return _resized(image[top : top + height, left : left + width], self.size, self.size)


def random_box(height: int, width: int, smallest: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a part of an image as torchvision's `RandomResizedCrop` does.

    The area is uniform in [smallest, 1] of the image, and the logarithm of the ratio of its sides is uniform between
    3 : 4 and 4 : 3. After ten parts that do not fit, the largest centre crop within these ratios is taken.

    Returns:
        First row and column, height and width.
    """
    for area, ratio in zip(
        height * width * rng.uniform(smallest, 1, ATTEMPTS),
        np.exp(rng.uniform(-math.log(RATIO), math.log(RATIO), ATTEMPTS)),
        strict=True,
    ):
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = min(height, round(width * RATIO)), min(width, round(height * RATIO))
    return (height - h) // 2, (width - w) // 2, h, w


def _resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize an image (H, W, C) with antialiasing, faster than torchvision's `resize`."""
    if image.shape[:2] == (height, width):
        return image
    whole = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]  # the fast path is channels-last
    resized = interpolate(whole, (height, width), mode="bilinear", antialias=True)
    found: NDArray[np.uint8] = resized[0].permute(1, 2, 0).numpy()
    return found
