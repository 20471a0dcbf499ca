"""Early check of the metrics that other callbacks monitor."""

from collections.abc import Collection, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_paf.callbacks.robust_eval import RobustEval

_FAMILIES = ("train/", "activation", "overfitting/", "val/aa_", "lr")
"""Prefixes of metrics whose names depend on other options."""


class MonitorCheck(Callback):
    """Callback that refuses a monitored metric that is not logged.

    Lightning would report it after an epoch. `check` compares with the metrics of validation, the first step with the
    means over an epoch. Where a class of another package could log, only robust accuracies (`val/acc_NAME`) are
    checked.

    Raises:
        ValueError: A callback monitors a metric that is not logged.
    """

    def __init__(self) -> None:
        self._is_first = True

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metrics of validation, before anything is written."""
        evaluations = [callback for callback in _callbacks(trainer) if isinstance(callback, RobustEval)]
        metrics = getattr(pl_module, "val_metrics", ("val/acc",))
        known = [*metrics, *(f"val/acc_{callback.name}" for callback in evaluations if callback.every_n_epochs)]
        families = _FAMILIES if _is_closed(trainer, pl_module) else ("",)
        for option, name in _monitored(trainer, pl_module):
            if name.startswith("val/acc_") or not name.startswith(families):
                _require(option, name, [*known, "train/loss", "epoch", "step"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metrics of the schedulers of other modules, which `fit` creates."""
        self.check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the means over an epoch, after the first step."""
        if not self._is_first or not _is_closed(trainer, pl_module):
            return
        self._is_first = False
        known = [f"train/{name}" for name in pl_module.epoch_state()["sums"]]  # type: ignore[operator]  # of a Task
        for option, name in _monitored(trainer, pl_module):
            if name.startswith("train/"):
                _require(option, name, known)


def _monitored(trainer: Trainer, pl_module: LightningModule) -> Iterator[tuple[str, str]]:
    """Yield the options and the names of monitored metrics."""
    owners = [(type(callback).__name__, callback) for callback in _callbacks(trainer)]
    for option, owner in (*owners, ("model.schedule", getattr(pl_module, "schedule", None))):
        name = getattr(owner, "monitor", None)
        if isinstance(name, str):
            yield f"{option}.monitor", name
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor:
            yield f"{type(config.scheduler).__name__}.monitor", config.monitor


def _require(option: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(
            f"{option} must be a metric that the training logs, got {name}. Pass one of {', '.join(known)}."
        )


def _callbacks(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def _is_closed(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether only classes of this package and Lightning can log."""
    classes = map(type, (pl_module, *_callbacks(trainer)))
    return all(cls.__module__.partition(".")[0] in ("lightning_paf", "lightning") for cls in classes)
