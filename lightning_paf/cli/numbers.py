"""Checks of the numbers in a configuration, before anything is built."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import Namespace

Rule = tuple[Callable[[Any], bool], str]
_COUNT: Rule = (lambda value: value >= 1, "be at least 1")
_COUNT_OR_NONE: Rule = (lambda value: value >= 1 or value == -1, "be at least 1, or -1 for no limit")
_FRACTION: Rule = (lambda value: value > 0, "be positive: a fraction of the batches, or their number")
_RATE: Rule = (lambda value: 0 < value < math.inf, "be positive and finite")

_FIT: Mapping[str, Rule] = {
    "trainer.max_epochs": _COUNT_OR_NONE,
    "trainer.max_steps": _COUNT_OR_NONE,
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.check_val_every_n_epoch": _COUNT,
    "trainer.val_check_interval": (lambda value: isinstance(value, str | dict) or value > 0, "be positive"),
    "trainer.log_every_n_steps": (lambda value: value >= 0, "be at least 0"),
    "trainer.num_sanity_val_steps": (lambda value: value >= -1, "be at least 0, or -1 for all"),
    "trainer.gradient_clip_val": (lambda value: 0 <= value < math.inf, "be finite and at least 0"),
    "trainer.limit_train_batches": _FRACTION,
    "model.optimizer.init_args.lr": _RATE,
    "model.optimizer.init_args.base.init_args.lr": _RATE,
    "model.init_args.optimizer.init_args.lr": _RATE,
}
_COMMANDS: Mapping[str, Mapping[str, Rule]] = {
    "fit": _FIT,
    "validate": {"trainer.limit_val_batches": _FRACTION},
    "test": {"trainer.limit_test_batches": _FRACTION},
    "predict": {"trainer.limit_predict_batches": _FRACTION},
}
_COMMON: Mapping[str, Rule] = {
    "seed_everything": (lambda value: isinstance(value, bool) or 0 <= value < 2**32, "be from 0 to 4294967295"),
    "trainer.barebones": (lambda value: not value, "be false, since a run has loggers and checkpoints"),
}
_NEVER_NONE = ("lr",)


def check_numbers(command: str, config: Namespace) -> None:
    """Check the numbers that Lightning and torch accept silently, or refuse late.

    Raises:
        ValueError: A number is out of range.
    """
    for key, (is_valid, must) in {**_COMMON, **_COMMANDS[command]}.items():
        value, option = config.get(key, ...), key.replace("init_args.", "")
        if value is ... or (value is None and not key.endswith(_NEVER_NONE)):
            continue
        if value is None or not is_valid(value):
            raise ValueError(f"--{option} must {must}, got {value}. Pass another --{option}, or leave it out.")
