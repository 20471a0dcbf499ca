"""What published checkpoints have in common, as data: a new family is a new line here."""

from typing import NamedTuple

from lightning_paf.interop.normalized_net import Statistics


class Wrapper(NamedTuple):
    """An entry under which files keep a state dict.

    Attributes:
        key: Name of the entry.
        averaged: Whether it is an average over the training (EMA, SWA).
        beside: The entry means this only where the file also has an entry of this name.
    """

    key: str
    averaged: bool = False
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
    Wrapper("unaveraged_model_state_dict"),
    Wrapper("current_model_state"),
    Wrapper("state_dict"),
    Wrapper("model_state_dict"),
    Wrapper("net"),
    Wrapper("model"),
    Wrapper("last"),  # Andriushchenko & Flammarion 2020, beside `best`
)
"""In the order of preference among entries of the same kind."""

LIGHTNING_MARK = "pytorch-lightning_version"
LIGHTNING_ROOTS = ("model.", "net.", "network.", "backbone.")
"""Attributes of a LightningModule that hold the network; the rest belongs to the training."""

BOOKKEEPING = ("n_averaged",)
"""What torch's AveragedModel counts next to the weights."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "0.", "1.")
"""What wrapping a network puts in front of every key: DataParallel and DDP, torch.compile, an attribute, and the
index in `Sequential(network)` or `Sequential(normalisation, network)`."""

COUNTER = "num_batches_tracked"
"""Left out by some converters; it has no influence on what a network computes in eval mode."""


# There is no renaming between DeepMind's wide ResNets and those of TRADES, although all shapes agree: they pad their
# strided convolutions differently, and the weights of one compute nonsense in the other.
RENAMINGS: dict[str, dict[str, str]] = {
    "keys as they are": {},
    "head called linear instead of fc": {r"^linear\.": "fc."},
    "head called fc instead of linear": {r"^fc\.": "linear."},
    # The ResNet of many CIFAR repositories, also of the AutoAttack examples.
    "ResNet with shortcut and linear instead of downsample and fc": {
        r"^(layer\d+\.\d+)\.shortcut\.": r"\1.downsample.",
        r"^linear\.": "fc.",
    },
}
"""Regular expressions and their replacements, which turn the keys of one implementation into those of another that
computes the same. Tried in this order; the first that fits without a rest wins."""


DEEPMIND_MARKS = {"init_conv.weight", "conv_2d.weight"}
"""Keys that only the networks of DeepMind have, which normalise in their own code; their files say nothing of it."""

DEEPMIND_STATISTICS = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
