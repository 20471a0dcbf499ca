"""Normalisation of imported networks."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_paf.nets.factory import LibraryNet
from lightning_paf.nn.classifier import Classifier

_MEANS, _STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
"""Ends of the keys of a normalisation; `new_mean` in the `robustness` package."""


class Statistics(NamedTuple):
    """Mean and standard deviation for each channel of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def same_as(self, other: "Statistics") -> bool:
        """Return whether both are equal in float32, the precision of the model."""
        return len(self.mean) == len(other.mean) and torch.equal(torch.tensor(self), torch.tensor(other))


class NormalizedNet(nn.Module):
    """A network with another normalisation than that of the dataset.

    Args:
        net: Network from normalised images to logits, as trained.
        mean: Per-channel mean of images in [0, 1].
        std: Per-channel standard deviation.
        num_classes: Width of the logits.

    Raises:
        ValueError: The lengths differ, or a number is not finite, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: list[float], std: list[float], num_classes: int = 10) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
            raise ValueError(
                "mean and std must have one number for each channel, finite and for std positive, got "
                f"mean={mean} and std={std}. Pass --mean and --std."
            )
        self.net = net
        self.num_classes = num_classes
        # As in `Classifier`, the configuration holds these, not the checkpoint.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, num_classes)."""
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits

    def get_classifier(self) -> nn.Module | None:
        """Last layer, if the network has a method for it."""
        own = getattr(self.net, "get_classifier", None)
        return None if own is None else own()


def bare_net(model: Classifier) -> tuple[nn.Module, Statistics | None]:
    """Return the network without its normalisation, and the normalisation.

    Args:
        model: Normalisation and network.

    Returns:
        A part of `model`, not a copy; and its normalisation, None if it takes images in [0, 1].
    """
    mean, std = model.mean.flatten(), model.std.flatten()
    net = model.net
    while isinstance(net, NormalizedNet | LibraryNet):
        if isinstance(net, NormalizedNet):  # two normalisations in a row are one
            mean, std = mean + std * net.mean.flatten(), std * net.std.flatten()
        net = net.net
    statistics = Statistics(tuple(mean.tolist()), tuple(std.tolist()))
    return net, None if set(statistics.mean) == {0.0} and set(statistics.std) == {1.0} else statistics


def holds_statistics(keys: Iterable[str]) -> bool:
    """Return whether a network's keys include those of a normalisation."""
    return any(key.rpartition(".")[2] in (*_MEANS, *_STDS) for key in keys)


def split_statistics(
    tensors: Mapping[str, Tensor], own: Collection[str] = ()
) -> tuple[dict[str, Tensor], Statistics | None]:
    """Separate the buffers of a normalisation from the other tensors of a state dict.

    Args:
        tensors: State dict of a file.
        own: Keys of the network; a normalisation among them is not separated.

    Raises:
        ValueError: A mean without a standard deviation, several of them, or numbers that are not for images in [0, 1].
    """

    def named(names: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
        return {
            key: tuple(value.flatten().tolist())
            for key, value in tensors.items()
            if key.rpartition(".")[2] in names and value.is_floating_point() and value.numel() <= 4
            if not any(key == name or key.endswith(f".{name}") for name in own)
        }

    means, stds = named(_MEANS), named(_STDS)
    others = {key: value for key, value in tensors.items() if key not in means | stds}
    if not means | stds:
        return others, None
    mean, std = [*dict.fromkeys(means.values())], [*dict.fromkeys(stds.values())]
    alike = len(means) == len(stds) and len(mean) == len(std) == 1 and len(mean[0]) == len(std[0])
    if not alike or not (max(mean[0]) <= 1 and min(std[0]) > 0):
        raise ValueError(
            "The normalisation in the file must be one mean and one positive standard deviation for each channel of "
            f"images in [0, 1], got {means | stds}. Pass --drop {' '.join(means | stds)}, and --mean and --std "
            "in units of [0, 1] (grey levels divided by 255)."
        )
    return others, Statistics(mean[0], std[0])
