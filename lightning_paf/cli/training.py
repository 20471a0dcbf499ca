"""LightningCLI with named callback slots, recipes and helpful errors."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse.typing import register_type
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.utilities import rank_zero_info

from lightning_paf import recipes
from lightning_paf.attacks import radius_text
from lightning_paf.callbacks import (
    AddedCheckpoint,
    EpochPrinter,
    ExactResume,
    MonitorCheck,
    PredictionWriter,
    RobustEval,
    RunHeartbeat,
    StopOnSignal,
    Throughput,
)
from lightning_paf.cli.evaluated_checkpoint import (
    FRESH_HELP,
    UNTRAINED_HELP,
    arrange,
    evaluated_checkpoint,
    evaluated_weights,
    without_pretrained,
)
from lightning_paf.cli.net_sizes import check_net_sizes, link_sizes
from lightning_paf.cli.numbers import check_numbers
from lightning_paf.cli.parser import EVALUATION_SLOTS, SLOTS, parser_of
from lightning_paf.cli.renamed_options import with_new_names
from lightning_paf.cli.task_choice import task_settings
from lightning_paf.data import RobustDataModule
from lightning_paf.runs import console
from lightning_paf.runs.checkpoints import AtomicCheckpointIO, check_checkpoint
from lightning_paf.runs.config_file import check_saved
from lightning_paf.runs.folder import (
    NEWEST,
    RunFolder,
    check_writable,
    enter_run_folder,
    held_run_folder,
    is_finished,
)
from lightning_paf.runs.identity import resume_services
from lightning_paf.runs.loggers import check_installed, loggers
from lightning_paf.runs.torchrun import SyncBatchNormOnAnyDevice, follow_torchrun
from lightning_paf.runs.trust import TRUST, TRUST_HELP
from lightning_paf.runs.weights_origin import WeightsOrigin
from lightning_paf.tasks import RobustModule, Task
from lightning_paf.tasks.scored import ScoredTask
from lightning_paf.utils.radius import radius_from_text

_LAST: dict[str, Any] = {"filename": "last", "enable_version_counter": False, "save_on_train_epoch_end": True}
"""Options of `last.ckpt`, saved after every epoch, validated or not.

`save_last` would wait until a better checkpoint is saved.
"""
_PERIODIC: dict[str, Any] = {
    "filename": "{step}",
    "every_n_train_steps": 1000,
    "monitor": "step",  # keeps the latest
    "mode": "max",
    "save_top_k": 2,
    "save_on_train_epoch_end": True,  # otherwise the last one of an epoch would wait for the validation
}
"""Checkpoint to resume a run that was killed in the middle of an epoch."""


class _NotConfigured(argparse.Action):
    """Option outside the configuration; `saved_config.config_words` reads it."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, *words: object, **options: object) -> None:
        """Do nothing."""


class PafCLI(LightningCLI):
    """LightningCLI with named callback slots and a run folder.

    Unlike in LightningCLI, hyper-parameters of a checkpoint never override the command line.

    Args:
        command: The only command to build a parser for; None builds all parsers.
        task: Class of the module by default, if options name its class.
        **settings: Of `LightningCLI`.
    """

    def __init__(self, *, command: str | None = None, task: type[Task] = RobustModule, **settings: Any) -> None:
        self._command, self._task = command, task
        super().__init__(**{**settings, "parser_class": parser_of(task)})  # type: ignore[arg-type]  # a class is hashable

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method in LightningCLI
        """Return the commands that get parsers, with skipped arguments of the trainer."""
        known = LightningCLI.subcommands()
        return known if self._command is None else {self._command: known[self._command]}

    _restore_loggers: Callable[[], None] | None = None
    evaluated: WeightsOrigin | None = None
    """Origin of the weights that `validate`, `test` or `predict` evaluates."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add an optional argument per slot, the run folder, and links from data to model."""
        for slot, callback in SLOTS.items():
            parser.add_subclass_arguments(callback, slot, required=False, help=f"{callback.__name__}; null: none")
        for slot, options in (("checkpoint", _LAST), ("periodic", _PERIODIC)):
            parser.set_defaults({slot: {"class_path": "ModelCheckpoint", "init_args": options}})
        parser.add_argument(
            "--run",
            type=Path | None,
            default=None,
            help="Run folder: config, metrics (CSV and TensorBoard), checkpoints. Null: lightning_logs/version_N.",
        )
        parser.add_argument(TRUST, action=_NotConfigured, help=TRUST_HELP)
        model = "model"
        if self.subclass_mode_model:
            model = "model.init_args"
            parser.set_defaults({"model": {"class_path": f"{self._task.__module__}.{self._task.__name__}"}})
        link_sizes(parser, self.datamodule_class, model)  # type: ignore[arg-type]  # LightningCLI allows more

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without LightningCLI's warning about `args` in addition to a command line."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # `train` gives a list
        check_net_sizes(args, self.config, self.datamodule_class)  # type: ignore[arg-type]
        if self.config.get("subcommand"):
            check_numbers(self.config.subcommand, self.config[self.config.subcommand])

    def setup_parser(self, add_subcommands: bool, *kwargs: dict[str, Any]) -> None:
        """Without a command, accept the arguments of `fit`.

        Saved configurations hold them.
        """
        super().setup_parser(add_subcommands, *kwargs)
        if not add_subcommands:
            self.parser.add_method_arguments(Trainer, "fit", skip=set(self.subcommands()["fit"]))

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Add `--untrained` to the commands that evaluate, and `--fresh` to `test`."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.add_argument("--untrained", action="store_true", help=UNTRAINED_HELP)
        if subcommand == "test":
            parser.add_argument("--fresh", action="store_true", help=FRESH_HELP)
        return parser

    def _evaluates(self) -> bool:
        return self.subcommand not in (None, "fit")

    def _parse_ckpt_path(self) -> None:
        """Ignore the checkpoint's hyper-parameters.

        `arrange` reads the `config.yaml` of its run instead.
        """

    def _dump_config(self) -> None:
        """Dump the configuration once, without validating it again as LightningCLI does."""
        if not hasattr(self, "config_dump"):
            text = self.parser.dump(self.config, skip_link_targets=False, skip_unset=False, skip_validation=True)
            content = yaml.safe_load(text)
            self.config_dump = content[self.subcommand] if self.subcommand else content
            if self.subcommand == "fit":
                check_saved(self.config_dump)

    def before_instantiate_classes(self) -> None:
        """Check the checkpoint and access to the run folder before anything is built."""
        checkpoint, run = self._get(self.config, "ckpt_path"), self._get(self.config, "run")
        if self._evaluates():
            options = self.config[self.subcommand]
            options["ckpt_path"] = evaluated_checkpoint(str(self.subcommand), checkpoint, run, options["untrained"])
            model = options.model.get("init_args", options.model).as_dict()
            self.evaluated = evaluated_weights(options["ckpt_path"], model)
        elif checkpoint is not None and checkpoint not in NEWEST:
            check_checkpoint(checkpoint)
        evaluated = self._evaluates() and self.config[self.subcommand].ckpt_path is not None
        if evaluated or self.subcommand is None:  # `load_run` and `import-weights` load weights
            model = self._get(self.config, "model")
            model = model.get("init_args", model)
            without_pretrained(model.get("net"))
            if evaluated and "init" in model:
                model["init"] = None
        check_installed(self._get(self.config, "trainer.logger"))
        if self.subcommand is not None and run is not None:
            check_writable(Path(run))
            self._restore_loggers = resume_services(self._get(self.config, "trainer.logger"), Path(run))

    def after_instantiate_classes(self) -> None:
        """Check the trainer against the data and the monitored metric."""
        if self._restore_loggers is not None:
            self._restore_loggers()
            self._restore_loggers = None  # strategies that spawn processes pickle this object
        if self.evaluated is not None and self.evaluated.untrained:
            self.model.untrained = self.evaluated
        if self.subcommand == "fit":
            self.datamodule.check_devices(self.trainer.world_size)  # on all ranks, before one prepares data
            self.model.check_start(self.datamodule.spec)
        if self.subcommand == "predict":
            self.model.check_predict()  # before loggers open their files
        for evaluation in (self.model, *self.trainer.callbacks):  # type: ignore[attr-defined]
            if isinstance(evaluation, RobustEval | ScoredTask):
                evaluation.fresh = bool(self._get(self.config, "fresh"))
        MonitorCheck().check(self.trainer, self.model)

    def _run_subcommand(self, subcommand: str) -> None:
        """Lock the run folder during training, and check it before the loggers open it."""
        if subcommand != "fit":
            super()._run_subcommand(subcommand)
            return
        with held_run_folder(self.trainer, self._get(self.config, "run")):
            checkpoint = self._get(self.config, "ckpt_path")
            if is_finished(self.trainer, checkpoint, self.config_dump):
                return
            checkpoint = enter_run_folder(self.trainer, checkpoint, self.config_dump)
            self.config["fit"]["ckpt_path"] = self.config_init["fit"]["ckpt_path"] = checkpoint
            net = self.model.model.net
            rank_zero_info(f"Network: {type(net).__name__}, {sum(p.numel() for p in net.parameters()):,} parameters")
            try:
                super()._run_subcommand(subcommand)
            except RuntimeError as error:
                if "Pass --" not in str(error):
                    raise
                raise ValueError(str(error)) from error
            for stopping in self.trainer.early_stopping_callbacks:
                if reason := stopping.stopping_reason_message:
                    rank_zero_info(f"EarlyStopping in epoch {self.trainer.current_epoch}: {reason}")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Fill the slots and open the run folder."""
        training = self.subcommand in (None, "fit")
        slots = {slot: self._get(self.config_init, slot) for slot in (SLOTS if training else EVALUATION_SLOTS)}
        checkpoint, added = slots.get("checkpoint"), _as_list(config.get("callbacks"))
        if checkpoint is None:
            config["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in added)
            slots["periodic"] = None
        elif isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor:
            slots["last"] = ModelCheckpoint(**_LAST)
        run = self._get(self.config_init, "run")
        if run is not None:
            # Other commands write to a subfolder and keep the metrics of the training.
            config["default_root_dir"] = run if training else run / str(self.subcommand)
            config["logger"] = loggers(config["default_root_dir"], config.get("logger"), self.evaluated)
        if config.get("enable_model_summary") is None:
            config["enable_model_summary"] = False  # Lightning's counts no FLOPs without an example batch
        plugins = _as_list(config.get("plugins"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        if config.get("sync_batchnorm") and not any(isinstance(plugin, LayerSync) for plugin in plugins):
            plugins.append(SyncBatchNormOnAnyDevice())
        config["plugins"] = plugins
        follow_torchrun(config)
        # Averaging comes first, so that checkpoints of other callbacks after a step hold the average of this step.
        first = [slots.pop("averaging")] if slots.get("averaging") else []
        config["callbacks"] = [*first, *added]
        filled = [callback for callback in slots.values() if callback is not None]
        AddedCheckpoint.omit_folders([*config["callbacks"], *filled])
        throughput = Throughput()
        reports: list[Callback] = [RunHeartbeat(throughput)]
        AddedCheckpoint.keep_states_apart(config["callbacks"], filled)
        if not any(isinstance(callback, ProgressBar) for callback in config["callbacks"]):
            if config.get("enable_progress_bar") is None:
                config["enable_progress_bar"] = sys.stdout.isatty()
            reports += [] if config["enable_progress_bar"] else [EpochPrinter(throughput)]
        # `Throughput` comes last, so that a step includes all callbacks.
        always = [ExactResume(), MonitorCheck(), StopOnSignal(), PredictionWriter(), *reports, throughput]
        with _explained_trainer(config):
            return super()._instantiate_trainer(config, [*callbacks, *filled, *always])


SETTINGS: dict[str, Any] = {
    "model_class": RobustModule,
    "datamodule_class": RobustDataModule,
    "parser_kwargs": {"prog": "lightning-paf"},
    "save_config_callback": RunFolder,
    "seed_everything_default": 0,
    # Attacks need gradients in validation and test, which inference mode disables irrevocably.
    "trainer_defaults": {"inference_mode": False},
    # The optimizer is an argument of the module, so that it also exists without the command line.
    "auto_configure_optimizers": False,
}
"""Arguments of `PafCLI` for all commands."""


def train(args: Sequence[str], run: bool = True) -> PafCLI:
    """Run `fit`, `validate`, `test` or `predict`.

    Args:
        args: The command and its options.
        run: Whether to run the command; false only builds the objects.
    """
    console.set_up()
    words = recipes.resolved(args)
    command = words[0] if run else None
    words = with_new_names(arrange(words) if run else words)
    with contextlib.nullcontext() if run else console.quiet():
        return PafCLI(
            **{**SETTINGS, **task_settings(words)},
            command=command,
            # `enter_run_folder` has checked the folder if a command runs.
            save_config_kwargs={"overwrite": run},
            args=words,
            run=run,
        )


@contextlib.contextmanager
def _explained_trainer(config: Mapping[str, Any]) -> Iterator[None]:
    """Convert errors of the trainer's arguments to a `ValueError` with a hint."""
    try:
        yield
    except (MisconfigurationException, TypeError, ValueError) as error:
        no_gpu = config.get("accelerator") not in ("auto", "cpu") and not torch.cuda.is_available()
        hint = "Without a GPU, pass --trainer configs/trainer/cpu.yaml." if no_gpu else "Pass other options."
        raise ValueError(f"--trainer must be valid, got: {' '.join(str(error).split())} {hint}") from error


def _as_list(value: Any) -> list[Any]:
    """Return an argument of the trainer (None, one value or several) as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


register_type(torch.device, fail_already_registered=False)  # of `StochasticWeightAveraging`
# `8/255` is read exactly, and saved in the same form.
register_type(Fraction, serializer=radius_text, deserializer=radius_from_text, fail_already_registered=False)
