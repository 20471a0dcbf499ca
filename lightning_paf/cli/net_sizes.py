"""Sizes of the network that follow from the data."""

import re
from collections.abc import Sequence
from itertools import pairwise

from jsonargparse import Namespace

from lightning_paf.specs import dataset_spec

_NET_SIZE = re.compile(r"--(model\.net\.(?:init_args\.)?(?:net\.(?:init_args\.)?)?(num_classes|in_channels))(?:=(.*))?")


def number_of_classes(dataset: str, num_classes: int | None, channels: int | None) -> int:
    """Return the number of classes of a dataset."""
    return dataset_spec(dataset, num_classes, channels).num_classes


def number_of_channels(dataset: str, num_classes: int | None, channels: int | None) -> int:
    """Return the number of channels of a dataset."""
    return dataset_spec(dataset, num_classes, channels).channels


def check_net_sizes(words: Sequence[str], config: Namespace) -> None:
    """Check that typed sizes of the network are those of the data.

    The links would replace other sizes silently.

    Raises:
        ValueError: They are not.
    """
    data = config[config.subcommand].data if config.get("subcommand") else config.data
    spec = dataset_spec(data.dataset, data.num_classes, data.channels)
    sizes = {"num_classes": spec.num_classes, "in_channels": spec.channels}
    for word, following in pairwise([*words, ""]):
        typed = _NET_SIZE.fullmatch(word)
        if typed and (value := typed[3] or following) != str(size := sizes[typed[2]]):
            raise ValueError(f"{typed[1]} must be {size}, as in the data, got {value}. Leave --{typed[1]} out.")
