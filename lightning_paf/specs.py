"""Shape, number of classes and statistics of each dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TORCHVISION = "torchvision.datasets."
DatasetName = Literal["digits", "cifar10", "cifar100", "svhn", "npz", "folder", "huggingface"] | str
"""Names of datasets; a string is the class path of a dataset of torchvision."""
LARGEST_SIDE = 4096
"""Pixels; a typing error beyond it would allocate the whole memory."""


@dataclass(frozen=True)
class DatasetSpec:
    """Shape and statistics of a dataset.

    Args:
        name: As in `--data.dataset`.
        num_classes: Number of classes; labels are 0 .. num_classes - 1.
        size: Height of the images; nominal for `npz`, where only trial passes of a network use it.
        mean: Per-channel mean of the training images in [0, 1]; its length is the number of channels.
        std: Per-channel standard deviation of the training images.
        class_names: Names of the classes in the order of the labels; empty if they have none.
        width: Width of the images; None for that of a square.
    """

    name: str
    num_classes: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    width: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.channels, self.size, self.width or self.size

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return len(self.mean)


def class_name(names: Sequence[str], label: int) -> str:
    """Return the name of a class; `class K` without names."""
    return names[label] if 0 <= label < len(names) else f"class {label}"


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# CIFAR: the statistics in the code of Dai et al. (2021); digits: computed on the 1,797 images that scikit-learn ships.
_SPECS = {
    "digits": DatasetSpec("digits", 10, 8, (0.3053,), (0.3760,)),
    "cifar10": DatasetSpec("cifar10", 10, 32, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616), _CIFAR10),
    "cifar100": DatasetSpec("cifar100", 100, 32, (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
    "svhn": DatasetSpec("svhn", 10, 32, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


def known_class_names(name: str) -> tuple[str, ...]:
    """Return the names of the classes of a known dataset; empty for others."""
    return _SPECS[name].class_names if name in _SPECS else ()


# Of ImageNet, for the weights of timm and torchvision.
_STATISTICS = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
NOMINAL_SIZE = 32


def is_own(name: str) -> bool:
    """Check whether classes and channels of a dataset are those of the user's images."""
    return name == "npz" or is_encoded(name)


def is_encoded(name: str) -> bool:
    """Check whether a dataset has encoded images of any size."""
    return name in ("folder", "huggingface") or name.startswith(TORCHVISION)


def dataset_spec(
    name: str,
    num_classes: int | None = None,
    channels: int | None = None,
    size: int | None = None,
    class_names: Sequence[str] = (),
) -> DatasetSpec:
    """Look up a dataset.

    Args:
        name: One of digits, cifar10, cifar100, svhn, npz, folder, huggingface, or `torchvision.datasets.NAME`.
        num_classes: Number of classes; required for own images.
        channels: Number of image channels; for own images 3 by default.
        size: Height and width of own images; nominal by default.
        class_names: Names of the classes of own images.

    Raises:
        ValueError: Unknown name, own images without `num_classes`, or a number that contradicts a known dataset.
    """
    if is_own(name):
        return _own_spec(name, num_classes, channels, size, tuple(class_names))
    if name not in _SPECS:
        raise ValueError(
            f"data.dataset must be one of {', '.join([*_SPECS, 'npz', 'folder', 'huggingface'])} or torchvision."
            f"datasets.NAME, got {name!r}. Pass --data.dataset folder or npz for your own images."
        )
    spec = _SPECS[name]
    for argument, given in (("num_classes", num_classes), ("channels", channels), ("size", size)):
        known = getattr(spec, argument)
        if given not in (None, known):
            raise ValueError(
                f"data.{argument} must be {known} for data.dataset={name}, got {given}. "
                f"Leave --data.{argument} out, or pass --data.dataset npz or folder for your own images."
            )
    return spec


def _own_spec(
    name: str, num_classes: int | None, channels: int | None, size: int | None, class_names: tuple[str, ...]
) -> DatasetSpec:
    if num_classes is None or num_classes < 2:
        raise ValueError(
            f"data.num_classes must be at least 2 for data.dataset={name}, got {num_classes}. "
            "Pass --data.num_classes K."
        )
    count, side = 3 if channels is None else channels, NOMINAL_SIZE if size is None else size
    if count < 1:
        raise ValueError(f"data.channels must be at least 1, got {count}. Pass --data.channels 1 for grey images.")
    if not 1 <= side <= LARGEST_SIDE:
        raise ValueError(f"data.size must be from 1 to {LARGEST_SIDE} pixels, got {side}. Pass e.g. --data.size 224.")
    other = ((0.5,) * count, (0.25,) * count)
    mean, std = other if name == "npz" else _STATISTICS.get(count, other)
    return DatasetSpec(name, num_classes, side, mean, std, class_names)
