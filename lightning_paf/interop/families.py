"""Key layouts of published checkpoints; add a line to support another family."""

import re

from lightning_paf.interop.normalized_net import Statistics

AVERAGED = re.compile(r"(^|_)(ema|swa|avg|average|averaged)(_|$)|^swadict$")
"""Names of entries that hold an average over the training.

Among them `ema`, `model_ema`, `state_dict_ema` (timm), `swadict` (Dai et al. 2021).
"""

AVERAGED_NEXT_TO = {
    # Rade & Moosavi-Dezfooli 2022, Pang et al. 2022, Wang et al. 2023, Bartoldson et al. 2024
    "model_state_dict": "unaveraged_model_state_dict",
    # Lightning's WeightAveraging, and so WarmupEMA, saves the average under the usual name.
    "state_dict": "current_model_state",
}
"""Entries that hold an average if the other entry is present."""

RAW = (
    *("unaveraged_model_state_dict", "current_model_state", "state_dict", "model_state_dict", "net", "model"),
    "last",  # Andriushchenko & Flammarion 2020, next to `best`
)
"""Usual names of weights that are not averaged, ordered by preference."""

LIGHTNING_MARK = "pytorch-lightning_version"
LIGHTNING_ROOTS = ("model.", "net.", "network.", "backbone.")
"""Attributes of a LightningModule that hold the network."""

BOOKKEEPING = ("n_averaged",)
"""Counters of torch's AveragedModel among the weights."""

UNUSED = (
    "sub_block1.*",  # of the wide ResNets of TRADES, never called
    "attacker.*",  # second name of the network in the `robustness` package
)
"""Patterns of tensors that some implementations save but do not use."""

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
