"""Key layouts of published checkpoints; add a line to support another family."""

from typing import NamedTuple

from lightning_paf.interop.normalized_net import Statistics


class Wrapper(NamedTuple):
    """Checkpoint entry that holds a state dict.

    Attributes:
        key: Name of the entry.
        averaged: Whether it is an average over the training (EMA, SWA).
        requires: Name of an entry that must also be present.
    """

    key: str
    averaged: bool = False
    requires: str | None = None


WRAPPERS = (
    # Rade & Moosavi-Dezfooli 2022, Pang et al. 2022, Wang et al. 2023, Bartoldson et al. 2024
    Wrapper("model_state_dict", averaged=True, requires="unaveraged_model_state_dict"),
    # Lightning's WeightAveraging, and so WarmupEMA, saves the average under the usual name.
    Wrapper("state_dict", averaged=True, requires="current_model_state"),
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
    Wrapper("last"),  # Andriushchenko & Flammarion 2020, next to `best`
)
"""Ordered by preference; averaged and raw weights separately."""

LIGHTNING_MARK = "pytorch-lightning_version"
LIGHTNING_ROOTS = ("model.", "net.", "network.", "backbone.")
"""Attributes of a LightningModule that hold the network."""

BOOKKEEPING = ("n_averaged",)
"""Counters of torch's AveragedModel among the weights."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "0.", "1.")
"""Key prefixes of wrapped networks.

DataParallel and DDP, torch.compile, an attribute, and the index in `Sequential(network)` or `Sequential(normalisation,
network)`."""

COUNTER = "num_batches_tracked"
"""Omitted by some converters; it has no influence in eval mode."""


# DeepMind's wide ResNets and those of TRADES agree in all shapes but must not be renamed to each other: their strided
# convolutions have different padding.
RENAMINGS: dict[str, dict[str, str]] = {
    "same keys": {},
    "head called linear instead of fc": {r"^linear\.": "fc."},
    "head called fc instead of linear": {r"^fc\.": "linear."},
    # The ResNet of many CIFAR repositories, also of the AutoAttack examples.
    "ResNet with shortcut and linear instead of downsample and fc": {
        r"^(layer\d+\.\d+)\.shortcut\.": r"\1.downsample.",
        r"^linear\.": "fc.",
    },
}
"""Regular expressions that rename the keys of an implementation, by description.

They are tried in this order; the first one that maps all keys is used."""


DEEPMIND_MARKS = {"init_conv.weight", "conv_2d.weight"}
"""Keys that only DeepMind's networks have.

Their files do not record the normalisation."""

DEEPMIND_STATISTICS = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
