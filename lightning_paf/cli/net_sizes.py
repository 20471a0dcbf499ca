"""Sizes of the network that follow from the data."""

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_paf.data.base import ImageDataModule

_NET_SIZE = re.compile(r"--(model\.net\.(?:init_args\.)?(?:net\.(?:init_args\.)?)?(num_classes|in_channels))(?:=(.*))?")


def link_sizes(parser: LightningArgumentParser, data: type[ImageDataModule], model: str) -> None:
    """Link the arguments of the data to the model and the sizes of its network.

    Args:
        parser: Parser with both.
        data: The data module.
        model: Prefix of the arguments of the model.
    """
    sources = tuple(f"data.{name}" for name in data.sources or data.linked)
    for name in data.linked:
        parser.link_arguments(sources, f"{model}.{name}", compute_fn=partial(data.of_task, name))
    for net in (f"{model}.net", f"{model}.net.init_args.net"):  # a network and one inside it
        parser.link_arguments(sources, f"{net}.init_args.num_classes", compute_fn=partial(_classes, data))
        parser.link_arguments(sources, f"{net}.init_args.in_channels", compute_fn=partial(_channels, data))


def check_net_sizes(words: Sequence[str], config: Namespace, data: type[ImageDataModule]) -> None:
    """Check that typed sizes of the network are those of the data.

    The links would replace other sizes silently. Facts that were found in the files are added to the configuration.

    Raises:
        ValueError: They are not, or data without classes has a network with some.
    """
    given = config[config.subcommand] if config.get("subcommand") else config
    spec = data.spec_of(*(given.data[name] for name in data.sources or data.linked))
    for name, value in data.found(spec).items():
        given.data[name] = value
    if spec.num_classes == 0 and "num_classes" in given.model.init_args.net.get("init_args", ()):
        name = given.model.init_args.net.class_path.rpartition(".")[2]
        raise ValueError(
            f"model.net must be a network without classes, got {name}. Pass one of the task's with --model.net."
        )
    sizes = {"num_classes": spec.num_classes, "in_channels": spec.channels}
    for word, following in pairwise([*words, ""]):
        typed = _NET_SIZE.fullmatch(word)
        if typed and (value := typed[3] or following) != str(size := sizes[typed[2]]):
            raise ValueError(f"{typed[1]} must be {size}, as in the data, got {value}. Leave --{typed[1]} out.")


def _classes(data: type[ImageDataModule], *linked: Any) -> int:
    return data.spec_of(*linked).num_classes


def _channels(data: type[ImageDataModule], *linked: Any) -> int:
    return data.spec_of(*linked).channels
