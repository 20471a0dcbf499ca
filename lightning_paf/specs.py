"""What the rest of the package must know of a dataset before a single image is read."""

from dataclasses import dataclass
from typing import Literal

DatasetName = Literal["digits", "cifar10", "cifar100", "svhn", "npz"]


@dataclass(frozen=True)
class DatasetSpec:
    """Shape and statistics of a dataset.

    Args:
        name: As in `--data.dataset`.
        num_classes: Number of classes; labels are 0 .. num_classes - 1.
        size: Height and width of the images; for `npz` a guess that only matters where a network is tried out.
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


_GENERIC_MEAN, _GENERIC_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

# CIFAR statistics: spec 1.8 (the values of PAF_AT); digits: computed on the 1,797 images that scikit-learn ships.
_SPECS = {
    "digits": DatasetSpec("digits", 10, 8, (0.3053,), (0.3760,)),
    "cifar10": DatasetSpec("cifar10", 10, 32, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": DatasetSpec("cifar100", 100, 32, (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
    "svhn": DatasetSpec("svhn", 10, 32, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


def dataset_spec(name: str, num_classes: int | None = None) -> DatasetSpec:
    """Look a dataset up.

    Args:
        name: One of digits, cifar10, cifar100, svhn, npz.
        num_classes: Only for `npz`, where nothing else says it.

    Raises:
        ValueError: Unknown name, `npz` without `num_classes`, or a number that contradicts a known dataset.
    """
    if name == "npz":
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"data.dataset=npz needs the number of classes, but data.num_classes={num_classes}. "
                "Pass --data.num_classes K with K >= 2."
            )
        return DatasetSpec("npz", num_classes, 32, _GENERIC_MEAN, _GENERIC_STD)
    if name not in _SPECS:
        raise ValueError(f"Unknown data.dataset={name!r}. Known: {', '.join([*_SPECS, 'npz'])}.")
    spec = _SPECS[name]
    if num_classes not in (None, spec.num_classes):
        raise ValueError(
            f"data.dataset={name} has {spec.num_classes} classes, but data.num_classes={num_classes}. "
            "Leave --data.num_classes out, or use --data.dataset npz for data of your own."
        )
    return spec
