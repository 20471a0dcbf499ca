"""Labels that are distributions, and what mixes them with the images."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def distributions(labels: Tensor, num_classes: int, smoothing: Tensor) -> Tensor:
    """Labels as distributions over the classes.

    Args:
        labels: int64 (N,).
        num_classes: How many classes.
        smoothing: Share (N,), in [0, 1), of each label that is spread evenly over all classes.

    Returns:
        Float (N, num_classes).
    """
    share = smoothing.float()[:, None]
    return one_hot(labels, num_classes) * (1 - share) + share / num_classes


class Mixing(ABC):
    """A random mixture of training images among each other, and of their labels in the same proportion."""

    @abstractmethod
    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: Images (N, C, H, W), uint8, in channels-last layout (so not for `view`). Not modified.
            targets: Distributions over the classes (N, num_classes).

        Returns:
            Images and targets of the same shapes.
        """


class CutMix(Mixing):
    """Pastes a rectangle of another image of the batch into every image (Yun et al. 2019; Rebuffi et al. 2021).

    One rectangle and one order of partners a batch: its area is a share of the image drawn from Beta(alpha, alpha), its
    centre is uniform, and what lies outside the image is cut off. Labels are mixed by the area that is left.

    Args:
        alpha: Parameter of the distribution of the area; 1, the usual, is uniform.

    Raises:
        ValueError: A parameter that is not positive.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not alpha > 0:
            raise ValueError(
                f"alpha is the parameter of a Beta distribution, > 0, but alpha={alpha}. Pass --data.mixing.alpha 1."
            )
        self.alpha = alpha

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch."""
        height, width = images.shape[-2:]
        # On the CPU, since sizes are read at once, which would make the program wait for the device.
        side = float(torch.distributions.Beta(self.alpha, self.alpha).sample()) ** 0.5
        rows, columns = _interval(height, side), _interval(width, side)
        partners = torch.randperm(len(images), device=images.device)
        mixed = images.clone()
        mixed[..., rows, columns] = images[partners][..., rows, columns]
        share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return mixed, (1 - share) * targets + share * targets[partners]


def _interval(length: int, share: float) -> slice:
    """About this share of `length` pixels, around a uniform centre, without what lies outside."""
    half, centre = int(length * share) // 2, int(torch.randint(length, ()))
    return slice(max(centre - half, 0), min(centre + half, length))
