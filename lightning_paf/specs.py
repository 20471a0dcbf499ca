"""Shape, number of classes and statistics of each dataset."""

from dataclasses import dataclass
from typing import Literal

DatasetName = Literal["digits", "cifar10", "cifar100", "svhn", "npz"]


@dataclass(frozen=True)
class DatasetSpec:
    """Shape and statistics of a dataset.

    Args:
        name: As in `--data.dataset`.
        num_classes: Number of classes; labels are 0 .. num_classes - 1.
        size: Height and width of the images; nominal for `npz`, where only trial passes of a network use it.
        mean: Per-channel mean of the training images in [0, 1]; its length is the number of channels.
        std: Per-channel standard deviation of the training images.
    """

    name: str
    num_classes: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return len(self.mean)


# CIFAR: the statistics in the code of Dai et al. (2021); digits: computed on the 1,797 images that scikit-learn ships.
_SPECS = {
    "digits": DatasetSpec("digits", 10, 8, (0.3053,), (0.3760,)),
    "cifar10": DatasetSpec("cifar10", 10, 32, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": DatasetSpec("cifar100", 100, 32, (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
    "svhn": DatasetSpec("svhn", 10, 32, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


def dataset_spec(name: str, num_classes: int | None = None, channels: int | None = None) -> DatasetSpec:
    """Look up a dataset.

    Args:
        name: One of digits, cifar10, cifar100, svhn, npz.
        num_classes: Number of classes; required for `npz`.
        channels: Number of image channels; for `npz` 3 by default.

    Raises:
        ValueError: Unknown name, `npz` without `num_classes`, or a number that contradicts a known dataset.
    """
    if name == "npz":
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"data.num_classes must be at least 2 for data.dataset=npz, got {num_classes}. "
                "Pass --data.num_classes K."
            )
        count = 3 if channels is None else channels
        if count < 1:
            raise ValueError(f"data.channels must be at least 1, got {count}. Pass --data.channels 1 for grey images.")
        return DatasetSpec("npz", num_classes, 32, (0.5,) * count, (0.25,) * count)
    if name not in _SPECS:
        raise ValueError(
            f"data.dataset must be one of {', '.join([*_SPECS, 'npz'])}, got {name!r}. "
            "Pass --data.dataset npz for your own images."
        )
    spec = _SPECS[name]
    for argument, given in (("num_classes", num_classes), ("channels", channels)):
        known = getattr(spec, argument)
        if given not in (None, known):
            raise ValueError(
                f"data.{argument} must be {known} for data.dataset={name}, got {given}. "
                f"Leave --data.{argument} out, or pass --data.dataset npz for your own images."
            )
    return spec
