"""What published checkpoints have in common, as data: a new family is a new line here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wrapper:
    """An entry under which files keep a state dict.

    Attributes:
        key: Name of the entry.
        averaged: Whether it is an average over the training (EMA, SWA).
        beside: The entry means this only where the file also has an entry of this name.
    """

    key: str
    averaged: bool
    beside: str | None = None


WRAPPERS = (
    # Rade & Moosavi-Dezfooli 2022, Pang et al. 2022, Wang et al. 2023, Bartoldson et al. 2024: the plain name is the
    # average.
    Wrapper("model_state_dict", averaged=True, beside="unaveraged_model_state_dict"),
    # Lightning's WeightAveraging, and so our own WarmupEMA, exchanges the two when it saves.
    Wrapper("state_dict", averaged=True, beside="current_model_state"),
    Wrapper("swadict", averaged=True),  # Dai et al. 2021
    Wrapper("state_dict_ema", averaged=True),  # timm
    Wrapper("ema_state_dict", averaged=True),
    Wrapper("ema", averaged=True),
    Wrapper("unaveraged_model_state_dict", averaged=False),
    Wrapper("current_model_state", averaged=False),
    Wrapper("state_dict", averaged=False),
    Wrapper("model_state_dict", averaged=False),
    Wrapper("net", averaged=False),
    Wrapper("model", averaged=False),
    Wrapper("last", averaged=False),  # Andriushchenko & Flammarion 2020, beside `best`
)
"""In the order of preference among entries of the same kind."""

LIGHTNING_MARK = "pytorch-lightning_version"
LIGHTNING_ROOTS = ("model.", "net.", "network.", "backbone.")
"""Attributes of a LightningModule that hold the network; what lies beside it belongs to the training."""

BOOKKEEPING = ("n_averaged",)
"""What torch's AveragedModel counts beside the weights."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "0.", "1.")
"""What wrapping a network puts in front of every key: DataParallel and DDP, torch.compile, an attribute, and the place
in `Sequential(network)` or `Sequential(normalisation, network)`."""

COUNTER = "num_batches_tracked"
"""Left out by some converters; it has no influence on what a network computes in eval mode."""


@dataclass(frozen=True)
class Renaming:
    """How the keys of one implementation turn into those of another that computes the same.

    Attributes:
        name: For the message.
        rules: Pairs of a regular expression and its replacement, applied one after the other.
    """

    name: str
    rules: tuple[tuple[str, str], ...] = ()

    def __call__(self, key: str) -> str:
        """The new name of a key whose prefixes are gone."""
        for pattern, replacement in self.rules:
            key = re.sub(pattern, replacement, key)
        return key


# There is no renaming between DeepMind's wide ResNets and those of TRADES, although all shapes agree: they pad their
# strided convolutions differently, and the weights of one compute nonsense in the other.
RENAMINGS = (
    Renaming("keys as they are"),
    Renaming("head called linear instead of fc", ((r"^linear\.", "fc."),)),
    Renaming("head called fc instead of linear", ((r"^fc\.", "linear."),)),
    # The ResNet of many CIFAR repositories, also of the AutoAttack examples.
    Renaming(
        "ResNet with shortcut and linear instead of downsample and fc",
        ((r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample."), (r"^linear\.", "fc.")),
    ),
)
"""Tried in this order; the first that fits without a rest wins."""


@dataclass(frozen=True)
class HiddenNormalisation:
    """Networks that normalise in their own code, of which their files say nothing.

    Attributes:
        name: For the message.
        mark: A key that only these networks have.
        statistics: Mean and standard deviation of each dataset, as in their code.
    """

    name: str
    mark: str
    statistics: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]


_DEEPMIND = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
HIDDEN_NORMALISATIONS = (
    HiddenNormalisation("DeepMind's wide ResNets", "init_conv.weight", _DEEPMIND),
    HiddenNormalisation("DeepMind's pre-activation ResNets", "conv_2d.weight", _DEEPMIND),
)
