"""The training commands: LightningCLI with named slots for callbacks, part files, and errors that help."""

import difflib
import inspect
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

from jsonargparse.typing import register_type
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

# Importing the packages makes their classes known, so that configs may say `attack: PGD` instead of the whole path.
import lightning_paf.nets
from lightning_paf import console
from lightning_paf.attacks import Attack
from lightning_paf.callbacks import ActivationMonitor, PredictionWriter, RobustEval
from lightning_paf.data import RobustDataModule
from lightning_paf.module import RobustModule
from lightning_paf.nn.activations import Activation
from lightning_paf.objectives import Objective
from lightning_paf.schedules import Schedule
from lightning_paf.specs import dataset_spec

TRAINING_SLOTS: dict[str, type[Callback]] = {
    "averaging": WeightAveraging,
    "checkpoint": ModelCheckpoint,
    "monitor": ActivationMonitor,
}
JUDGING_SLOTS: dict[str, type[Callback]] = {"val_attack": RobustEval, "autoattack": RobustEval}
SLOTS = {**TRAINING_SLOTS, **JUDGING_SLOTS}
"""Callbacks with a place of their own: lists cannot be merged or overridden by name, top-level keys can."""

_PLUG_INS: dict[str, type | ModuleType] = {
    **SLOTS,
    "net": lightning_paf.nets,
    "attack": Attack,
    "objective": Objective,
    "activation": Activation,
    "schedule": Schedule,
}
"""What the arguments that name classes accept, for the error message of a mistyped one."""

_LAST: dict[str, Any] = {"filename": "last", "enable_version_counter": False}
"""`last.ckpt`, overwritten after every epoch. Lightning's `save_last` writes it only when a better one is saved."""


class HelpfulParser(LightningArgumentParser):
    """A parser whose errors are short, and list the known classes where a class name is mistyped."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Add the classes of the argument to the message."""
        super().error(f"{message}{_known_classes(message)}", ex)

    def print_usage(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        """One line above an error; the eighty options are in `--help`."""
        print(f"usage: {self.prog}", file=file)


class RunFolder(SaveConfigCallback):
    """Saves the merged configuration of `fit` beside the checkpoints, and refuses a folder that holds another run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check and write; other commands leave the configuration of the training alone."""
        if stage != "fit":
            return
        config = Path(trainer.log_dir or ".") / self.config_filename
        self.overwrite = trainer.ckpt_path is not None
        held = trainer.strategy.broadcast(config.is_file())
        if held and not self.overwrite:
            raise ValueError(
                f"A run folder holds one run, but {config.parent} already holds one. "
                f"Pass another --run, or --ckpt_path {config.parent}/checkpoints/last.ckpt to continue it."
            )
        super().setup(trainer, pl_module, stage)


class PafCLI(LightningCLI):
    """LightningCLI with named callback slots and a run folder.

    The command line always wins: unlike in LightningCLI, a checkpoint's hyper-parameters are not merged over it.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One optional argument per slot, the run folder, and what the model takes from the data."""
        for slot, callback in SLOTS.items():
            parser.add_subclass_arguments(callback, slot, required=False, help=f"{callback.__name__}; null: none")
        parser.set_defaults({"checkpoint": {"class_path": "ModelCheckpoint", "init_args": _LAST}})
        parser.add_argument(
            "--run",
            type=Path | None,
            default=None,
            help="Run folder: config, metrics (CSV and TensorBoard), checkpoints. Null: lightning_logs/version_N.",
        )
        parser.link_arguments("data.dataset", "model.dataset")
        parser.link_arguments("data.num_classes", "model.num_classes")
        parser.link_arguments(
            ("data.dataset", "data.num_classes"), "model.net.init_args.num_classes", compute_fn=_number_of_classes
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; without LightningCLI's warning that `args` and a command line are there at the same time."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # `train` gives a list

    def _parse_ckpt_path(self) -> None:
        """Leave the command line alone; the checkpoint's own configuration lies beside it as `config.yaml`."""

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Fill the slots and open the run folder."""
        training = self.subcommand in (None, "fit")
        slots = [self._get(self.config_init, slot) for slot in (SLOTS if training else JUDGING_SLOTS)]
        if not training:
            config["enable_checkpointing"] = False
        run = self._get(self.config_init, "run")
        if run is not None and config.get("logger") in (None, True):
            config["logger"] = _loggers(run, str(self.subcommand))
        filled = [callback for callback in slots if callback is not None]
        filled += [ModelCheckpoint(**_LAST) for slot in filled if isinstance(slot, ModelCheckpoint) and slot.monitor]
        return super()._instantiate_trainer(config, [*callbacks, *filled, PredictionWriter()])


def train(args: Sequence[str], run: bool = True) -> PafCLI:
    """Run `fit`, `validate`, `test` or `predict`.

    Args:
        args: The command and its options.
        run: False builds everything and runs nothing.
    """
    console.set_up()
    return PafCLI(
        RobustModule,
        RobustDataModule,
        parser_class=HelpfulParser,
        save_config_callback=RunFolder,
        seed_everything_default=0,
        # Attacks need gradients in validation and test, which inference mode forbids for good.
        trainer_defaults={"inference_mode": False},
        # The optimiser is an argument of the module, so that it also exists without a command line.
        auto_configure_optimizers=False,
        args=_with_saved_config(list(args)),
        run=run,
    )


def _with_saved_config(words: list[str]) -> list[str]:
    """Put the configuration that lies beside the checkpoint first, where the user named none."""
    options = [word.split("=")[0] for word in words]
    if words[0] == "fit" or "--ckpt_path" not in options or {"-c", "--config", "-h", "--help"} & set(options):
        return words
    place = options.index("--ckpt_path")
    checkpoint = words[place].partition("=")[2] or "".join(words[place + 1 : place + 2])
    config = Path(checkpoint).parent.parent / "config.yaml"
    if not config.is_file():
        return words
    print(f"Configuration of the checkpoint: {config}", file=sys.stderr)  # noqa: T201
    return [words[0], "--config", str(config), *words[1:]]


def _loggers(run: Path, command: str) -> list[Logger]:
    """CSV and TensorBoard in exactly the run folder; other commands get a subfolder, to leave its metrics alone."""
    version = "" if command == "fit" else command
    return [logger(run.parent, name=run.name, version=version) for logger in (CSVLogger, TensorBoardLogger)]


def _number_of_classes(dataset: str, num_classes: int | None) -> int:
    return dataset_spec(dataset, num_classes).num_classes


def _known_classes(message: str) -> str:
    """The classes that an argument accepts, if the message is about a class that does not exist."""
    found = re.search(r'Parser key "([\w.]+)":.*Expected a dot import path string: ([\w.]+)', message, re.DOTALL)
    argument = found[1].rpartition(".")[2] if found else ""
    if found is None or argument not in _PLUG_INS:
        return ""
    names = _concrete_names(_PLUG_INS[argument])
    near = difflib.get_close_matches(found[2], names, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"\n{argument}={found[2]} names no known class.{hint} Known: {', '.join(names)}."


def _concrete_names(base: type | ModuleType) -> list[str]:
    """Names of the classes that a configuration may name without their path."""
    if isinstance(base, ModuleType):
        return sorted(base.__all__)
    below: set[type] = {base}
    waiting: list[type] = [base]
    while waiting:
        children: set[type] = set(waiting.pop().__subclasses__()) - below
        below |= children
        waiting += children
    return sorted(cls.__name__ for cls in below if not inspect.isabstract(cls))


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(" ", ""))


# So that `8/255` is read as typed, kept exact, and written back as typed.
register_type(Fraction, serializer=str, deserializer=_fraction, fail_already_registered=False)
