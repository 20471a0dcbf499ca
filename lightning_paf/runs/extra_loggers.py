"""Loggers of other projects beside those of the run folder: what they need, and what they are told."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

EXTRAS: Mapping[str, str] = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}
"""Loggers whose package is optional; module and extra have the same name."""


def check_installed(configured: Any) -> None:
    """Refuse a logger whose package is missing, before anything is built.

    Args:
        configured: Value of `--trainer.logger`: one or several `class_path`, or none.

    Raises:
        ValueError: It is missing.
    """
    for logger in configured if isinstance(configured, list) else [configured]:
        name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        if name in EXTRAS and find_spec(EXTRAS[name]) is None:
            raise ValueError(
                f"--trainer.logger {name} needs the package {EXTRAS[name]}, which is not installed. "
                f"Install it with `pip install 'lightning-paf[{EXTRAS[name]}]'`, or leave the logger out."
            )


def tell_config(loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
    """Give the whole configuration to those loggers that have no `config.yaml` beside them.

    How a run was continued is left out: it would change a parameter that was told before, which MLflow refuses.

    Args:
        loggers: Of the training; to be called on its first rank.
        config: Plain values.
    """
    kept = {key: value for key, value in config.items() if key not in ("ckpt_path", "config", "run")}
    for logger in loggers:
        if not isinstance(logger, CSVLogger | TensorBoardLogger):
            logger.log_hyperparams(kept)
