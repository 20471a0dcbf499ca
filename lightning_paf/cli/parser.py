"""Parser of the command line: callback slots, and errors with known classes."""

import re
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import IO, NoReturn

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser

# Imported so that configurations can name classes without their path, as in `attack: PGD`.
import lightning_paf.nets.dncnn
import lightning_paf.nets.few_shot
import lightning_paf.nn.sam
import lightning_paf.nn.sobolev_ncg
from lightning_paf.attacks import Attack
from lightning_paf.callbacks import ActivationMonitor, RobustEval
from lightning_paf.cli.class_names import shortened, subclasses, suggestion
from lightning_paf.data import Augment, Mixing
from lightning_paf.evaluation.stopping import StopRule
from lightning_paf.nn.activations import Activation
from lightning_paf.objectives import Objective
from lightning_paf.schedules import Schedule
from lightning_paf.synthesis.samplers import Sampler
from lightning_paf.tasks import Task

TRAINING_SLOTS: dict[str, type[Callback]] = {
    "averaging": WeightAveraging,
    "checkpoint": ModelCheckpoint,
    "periodic": ModelCheckpoint,
    "monitor": ActivationMonitor,
}
EVALUATION_SLOTS: dict[str, type[Callback]] = {"val_attack": RobustEval, "autoattack": RobustEval}
SLOTS = {**TRAINING_SLOTS, **EVALUATION_SLOTS}
"""Callbacks with named options, which unlike items of a list can be overridden."""

_PLUG_INS: dict[str, type | ModuleType] = {
    **SLOTS,
    "model": Task,
    "net": lightning_paf.nets,
    "attack": Attack,
    "objective": Objective,
    "activation": Activation,
    "schedule": Schedule,
    "sampler": Sampler,
    "stop": StopRule,
    "augment": Augment,
    "mixing": Mixing,
}
"""Classes that each argument accepts, listed when one is mistyped."""


class HelpfulParser(LightningArgumentParser):
    """Parser with short errors, which list the known classes for an unknown one.

    Attributes:
        plug_ins: For each argument the base of its classes, or the module that lists them.
    """

    plug_ins: Mapping[str, type | ModuleType] = _PLUG_INS

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Add the known classes to the message, and remove the names of links."""
        if "add_function_arguments() got an unexpected" in message:  # of the links from data to network
            message = (
                "model.net must be a class, got a function. Pass TimmNet or TorchvisionNet with --model.net.name, or a "
                "subclass of nn.Module that calls the function."
            )
        message = re.sub(r"Call to compute_fn of link '.*' with args \(.*\) failed: ", "", message)
        super().error(f"{shortened(message)}{suggestion(message, self.plug_ins)}", ex)

    def print_usage(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        """Print one line above an error."""
        print(f"usage: {self.prog}", file=file)


@cache
def parser_of(task: type[Task]) -> type[HelpfulParser]:
    """Parser that lists the classes of a task; also used for the arguments of classes."""
    return type(f"{task.__name__}Parser", (HelpfulParser,), {"plug_ins": {**_PLUG_INS, **task.plug_ins}})


def __getattr__(name: str) -> type[HelpfulParser]:
    """Return the parser of a task by its name, which spawned processes unpickle."""
    for task in subclasses(Task):
        if name == f"{task.__name__}Parser":
            return parser_of(task)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
