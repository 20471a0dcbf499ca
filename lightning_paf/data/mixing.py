"""Soft labels, and mixtures of training images with their labels."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_paf.utils.options import checked


def distributions(labels: Tensor, num_classes: int, smoothing: Tensor) -> Tensor:
    """Convert labels to distributions over the classes.

    Args:
        labels: int64 (N,).
        num_classes: Number of classes.
        smoothing: Fraction (N,), in [0, 1), of each label that is spread evenly over all classes.

    Returns:
        Float (N, num_classes).
    """
    spread = smoothing.float()[:, None]
    return one_hot(labels, num_classes) * (1 - spread) + spread / num_classes


class Mixing(ABC):
    """Random mixing of images and labels within a batch."""

    @abstractmethod
    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: Images (N, C, H, W), uint8, channels-last (`view` fails). Not modified.
            targets: Distributions over the classes (N, num_classes).

        Returns:
            Images and targets of the same shapes.
        """


class CutMix(Mixing):
    """Paste a rectangle of another image of the batch into each image.

    From Yun et al. 2019 and Rebuffi et al. 2021. A batch has one rectangle and one permutation. The area is
    a fraction of the image drawn from Beta(alpha, alpha), the centre is uniform, and parts outside the image are cut
    off. Labels are mixed by area.

    Args:
        alpha: Parameter of the distribution of the area; 1, the usual value, is uniform.

    Raises:
        ValueError: `alpha` is not positive.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = checked("alpha", alpha, 0 < alpha < math.inf, "finite and > 0", 1, "--data.mixing")

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Paste the rectangle."""
        height, width = images.shape[-2:]
        # Drawn on the CPU to avoid a device synchronisation.
        side = float(torch.distributions.Beta(self.alpha, self.alpha).sample()) ** 0.5
        rows, columns = _interval(height, side), _interval(width, side)
        partners = torch.randperm(len(images), device=images.device)
        mixed = images.clone()
        mixed[..., rows, columns] = images[partners][..., rows, columns]
        pasted = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return mixed, (1 - pasted) * targets + pasted * targets[partners]


def _interval(length: int, fraction: float) -> slice:
    """A fraction of `length` pixels around a uniform centre, cut off at the edges."""
    half, centre = int(length * fraction) // 2, int(torch.randint(length, ()))
    return slice(max(centre - half, 0), min(centre + half, length))
