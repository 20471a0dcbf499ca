"""Normalisation that comes with imported weights."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

MEAN_NAMES, STD_NAMES = ("mean", "mu"), ("std", "sigma")


class Statistics(NamedTuple):
    """Mean and standard deviation for each channel of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def same_as(self, other: "Statistics") -> bool:
        """Whether both are the same numbers in float32, in which the model computes."""
        return torch.equal(torch.tensor(self), torch.tensor(other)) if len(self.mean) == len(other.mean) else False


class NormalizedNet(nn.Module):
    """A network behind the normalisation that it was trained with, where this is not the dataset's own.

    Args:
        net: Network from normalised images to logits.
        mean: Per-channel mean of images in [0, 1].
        std: Per-channel standard deviation.
        num_classes: Width of the logits.

    Raises:
        ValueError: The lengths differ, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: list[float], std: list[float], num_classes: int = 10) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(
                f"A normalisation has as many means as positive standard deviations, but mean={mean} and std={std}. "
                "Pass one of each for every channel."
            )
        self.net = net
        self.num_classes = num_classes
        # As in `Classifier`: a checkpoint holds what was learned, the configuration holds these.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, num_classes)."""
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits

    def get_classifier(self) -> nn.Module | None:
        """The layer that makes the logits, where the network says which it is."""
        own = getattr(self.net, "get_classifier", None)
        return None if own is None else own()


def split_statistics(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Statistics | None]:
    """Take the buffers of a normalisation out of a state dict.

    Args:
        tensors: A state dict.

    Returns:
        The other tensors, and the statistics if there were any.

    Raises:
        ValueError: A mean without a standard deviation, several of them, or numbers that are not for images in [0, 1].
    """
    found = {
        key: value
        for key, value in tensors.items()
        if key.rpartition(".")[2] in MEAN_NAMES + STD_NAMES and value.is_floating_point() and value.numel() <= 4
    }
    others = {key: value for key, value in tensors.items() if key not in found}
    if not found:
        return others, None
    mean, std = (
        [tuple(value.flatten().tolist()) for key, value in found.items() if key.rpartition(".")[2] in names]
        for names in (MEAN_NAMES, STD_NAMES)
    )
    if len(mean) != 1 or len(std) != 1 or len(mean[0]) != len(std[0]):
        raise ValueError(
            f"A normalisation is one mean and one standard deviation for each channel, but the file holds "
            f"{', '.join(found)}. Remove these keys from the file, and pass --mean and --std."
        )
    if max(mean[0]) > 1 or min(std[0]) <= 0:
        raise ValueError(
            f"The normalisation in the file, mean {mean[0]} and std {std[0]}, is not made for images in [0, 1]. "
            "Remove these keys from the file, and pass --mean and --std divided by 255."
        )
    return others, Statistics(mean[0], std[0])
