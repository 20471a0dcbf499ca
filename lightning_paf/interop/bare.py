"""A network without what this package puts around it."""

from torch import nn

from lightning_paf.interop.normalized_net import NormalizedNet, Statistics
from lightning_paf.nets.factory import LibraryNet
from lightning_paf.nn.classifier import Classifier


def bare_net(model: Classifier) -> tuple[nn.Module, Statistics | None]:
    """The network as its authors or its library know it, and the normalisation that belongs in front of it.

    Args:
        model: Normalisation and network.

    Returns:
        A part of `model`, not a copy; and None where images in [0, 1] go straight into it.
    """
    mean, std = model.mean.flatten(), model.std.flatten()
    net = model.net
    while isinstance(net, NormalizedNet | LibraryNet):
        if isinstance(net, NormalizedNet):  # two normalisations in a row are one
            mean, std = mean + std * net.mean.flatten(), std * net.std.flatten()
        net = net.net
    statistics = Statistics(tuple(mean.tolist()), tuple(std.tolist()))
    return net, None if set(statistics.mean) == {0.0} and set(statistics.std) == {1.0} else statistics
