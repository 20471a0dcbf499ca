"""Base class of the generators of synthetic images."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class ImageGenerator(ABC):
    """A distribution of images from which samples can be drawn.

    Attributes:
        shape: Channels, height and width of an image.
        num_classes: Number of classes of a conditional generator; None for an unconditional one.
    """

    shape: tuple[int, int, int]
    num_classes: int | None

    @abstractmethod
    def sample(self, count: int, labels: Tensor | None, rng: torch.Generator) -> Tensor:
        """Draw images.

        All random numbers come from `rng`, on the CPU: the same state gives the same images on every device, up to
        rounding. They depend on `count` too, so a caller that resumes draws the same blocks again, each with its seed.

        Args:
            count: Number of images, at least 1.
            labels: Class of each image (count,), int64, on any device; None exactly for an unconditional generator.
            rng: A generator on the CPU.

        Returns:
            Images (count, C, H, W) in [0, 1], float32, on the device of the generator.

        Raises:
            ValueError: `labels` do not fit (see `check_labels`).
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the images depend on besides the arguments of `sample`."""

    def check_labels(self, count: int, labels: Tensor | None) -> None:
        """Check the arguments of `sample`.

        Raises:
            ValueError: `count` below 1; labels of an unconditional generator, or none of a conditional one; another
                number of labels than `count`, or labels that are no classes.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}. Pass --count 1 or more.")
        if self.num_classes is None:
            if labels is not None:
                raise ValueError(f"labels must be None for an unconditional generator, got {len(labels)} labels.")
            return
        if labels is None:
            raise ValueError(f"labels must be {count} classes below {self.num_classes}, got None.")
        valid = labels.shape == (count,) and bool(((labels >= 0) & (labels < self.num_classes)).all())
        if labels.dtype != torch.int64 or not valid:
            raise ValueError(
                f"labels must be {count} int64 classes from 0 to {self.num_classes - 1}, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}, from {labels.min().item()} to {labels.max().item()}."
            )
