"""Random augmentation of training batches, on the device."""

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_paf.data.image_batches import random_crop, random_flip
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


def standard_augment(dataset: DatasetName) -> Augment | None:
    """Return the standard augmentation of a dataset, or None."""
    # In digits a shift by one pixel is an eighth of the image; for npz no label-preserving change is known.
    return CropFlip(flip=dataset != "svhn") if dataset in ("cifar10", "cifar100", "svhn") else None
