"""Sizes of the network that follow from the data."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jsonargparse import Namespace

from lightning_paf.data.base import ImageDataModule

_NET_SIZE = re.compile(r"--(model\.net\.(?:init_args\.)?(?:net\.(?:init_args\.)?)?(num_classes|in_channels))(?:=(.*))?")


def number_of_classes(data: type[ImageDataModule], *linked: Any) -> int:
    """Return the number of classes for the linked arguments of a data module."""
    return data.spec_of(*linked).num_classes


def number_of_channels(data: type[ImageDataModule], *linked: Any) -> int:
    """Return the number of channels for the linked arguments of a data module."""
    return data.spec_of(*linked).channels


def check_net_sizes(words: Sequence[str], config: Namespace, data: type[ImageDataModule]) -> None:
    """Check that typed sizes of the network are those of the data.

    The links would replace other sizes silently.

    Raises:
        ValueError: They are not.
    """
    given = config[config.subcommand].data if config.get("subcommand") else config.data
    spec = data.spec_of(*(given[name] for name in data.linked))
    sizes = {"num_classes": spec.num_classes, "in_channels": spec.channels}
    for word, following in pairwise([*words, ""]):
        typed = _NET_SIZE.fullmatch(word)
        if typed and (value := typed[3] or following) != str(size := sizes[typed[2]]):
            raise ValueError(f"{typed[1]} must be {size}, as in the data, got {value}. Leave --{typed[1]} out.")
