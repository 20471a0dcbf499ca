"""Random augmentation of training batches, on the device."""

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_paf.data.image_batches import random_colours, random_crop, random_flip
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


def standard_augment(dataset: DatasetName) -> Augment | None:
    """Return the standard augmentation of a dataset, or None."""
    # In digits a shift by one pixel is an eighth of the image; for npz no label-preserving change is known.
    return CropFlip(flip=dataset != "svhn") if dataset in ("cifar10", "cifar100", "svhn") else None
