"""Random augmentation of training batches, on the device."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_paf.data.image_batches import random_colours, random_crop, random_flip, select_images
from lightning_paf.specs import DatasetName


class Augment(ABC):
    """A random change of training images that keeps their labels."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: Images (N, C, H, W), uint8, channels-last (`view` fails).

        Returns:
            Images of the same shape and dtype.
        """


class CropFlip(Augment):
    """Zero-padded random crop and random mirror image, as usual for CIFAR.

    Args:
        padding: Pixels added on each side before the crop.
        flip: Mirror left to right with probability 1/2. Switch it off where left and right matter, as for digits.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        if padding < 0:
            raise ValueError(f"padding must be at least 0, got {padding}. Pass --data.augment.padding 0 or more.")
        self.padding = padding
        self.flip = flip

    def __call__(self, images: Tensor) -> Tensor:
        """Crop and mirror a batch (N, C, H, W)."""
        images = random_crop(images, self.padding) if self.padding else images
        return random_flip(images) if self.flip else images


class ColorJitter(CropFlip):
    """Crop and mirror image, then random brightness, contrast and saturation.

    Args:
        strength: Largest change of each of the three factors, in [0, 1]; 0.2 in Wang and Ruan 2022.
        padding: Pixels added on each side before the crop.
        flip: Mirror left to right with probability 1/2.

    Raises:
        ValueError: A strength outside [0, 1].
    """

    def __init__(self, strength: float = 0.2, padding: int = 4, flip: bool = True) -> None:
        super().__init__(padding, flip)
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {strength}. Pass --data.augment.strength 0.2.")
        self.strength = strength

    def __call__(self, images: Tensor) -> Tensor:
        """Crop, mirror and recolour a batch (N, C, H, W)."""
        return random_colours(super().__call__(images), self.strength)


class Dihedral(Augment):
    """The eight flips and rotations of a square image, all equally likely."""

    def __call__(self, images: Tensor) -> Tensor:
        """Flip and transpose images of a batch (N, C, H, H)."""
        for axes in ((-1,), (-2,), None):
            changed = images.transpose(-1, -2) if axes is None else images.flip(axes)
            images = select_images(torch.rand(len(images), device=images.device) < 0.5, changed, images)
        return images


class GaussianNoise(Augment):
    """Gaussian noise on a random half of the images, as in Yan et al. (2020).

    Each of these images gets one standard deviation, all equally likely. Values are clipped to the pixel range and
    rounded to 1/255.

    Args:
        stds: Standard deviations for pixels in [0, 1], each >= 0; 50, 75 and 100 of 255 in the authors' code for MNIST.
        probability: Probability of noise, in [0, 1].

    Raises:
        ValueError: A value outside its range, or no standard deviation.
    """

    def __init__(self, stds: Sequence[float] = (50 / 255, 75 / 255, 100 / 255), probability: float = 0.5) -> None:
        if not stds or not all(0 <= std < math.inf for std in stds):
            raise ValueError(
                f"stds must be finite numbers >= 0, at least one, got {[*stds]}. Pass --data.augment.stds '[0.2, 0.4]'."
            )
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}. Pass --data.augment.probability 0.5.")
        self.stds = tuple(stds)
        self.probability = probability

    def __call__(self, images: Tensor) -> Tensor:
        """Add noise to a batch (N, C, H, W)."""
        n, device = len(images), images.device
        std = 255 * torch.tensor(self.stds, device=device)[torch.randint(len(self.stds), (n,), device=device)]
        std = std * (torch.rand(n, device=device) < self.probability)
        noise = torch.randn_like(images, dtype=torch.float32).mul_(std.view(-1, 1, 1, 1))
        return noise.add_(images).round_().clamp_(0, 255).to(images.dtype)


def standard_augment(dataset: DatasetName) -> Augment | None:
    """Return the standard augmentation of a dataset, or None."""
    # In digits a shift by one pixel is an eighth of the image; for npz no label-preserving change is known.
    return CropFlip(flip=dataset != "svhn") if dataset in ("cifar10", "cifar100", "svhn") else None
