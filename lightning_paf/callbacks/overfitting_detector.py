"""Detection of catastrophic overfitting in single-step adversarial training."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_paf.attacks import FGSM, PGD, Attack, loss_and_gradient
from lightning_paf.callbacks.robust_eval import fetch
from lightning_paf.functional.alignment import cosine
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.types import Radius

Action = Literal["warn", "stop", "roll_back"]


@dataclass(frozen=True)
class Measurement:
    """Accuracies and gradient alignment of a network on held-out images.

    Attributes:
        acc_clean: Clean accuracy.
        acc_fgsm: Accuracy under FGSM.
        acc_pgd: Accuracy under PGD-10.
        cosine: Mean cosine between the loss gradients at an image and at a random point of its ball.
    """

    acc_clean: float
    acc_fgsm: float
    acc_pgd: float
    cosine: float

    def overfits(self, best: "Measurement | None", gap: float, fall: float) -> bool:
        """Return whether the network is robust to single-step attacks only.

        Args:
            best: Earlier measurement with the largest `acc_pgd`, if any.
            gap: Largest plausible excess of FGSM accuracy over PGD accuracy.
            fall: Largest plausible loss of PGD accuracy, as a fraction of the best, while the cosine falls too.
        """
        fell = best is not None and self.acc_pgd < (1 - fall) * best.acc_pgd and self.cosine < best.cosine
        return self.acc_fgsm - self.acc_pgd > gap or fell


class OverfittingDetector(Callback):
    """Detector of catastrophic overfitting: robustness to single-step attacks only.

    Measures clean, FGSM and PGD-10 (step size eps / 4) accuracy on held-out images, and the mean cosine between the
    loss gradients at an image and at a uniform random point of its ball (Andriushchenko and Flammarion, 2020). Logs
    them as `overfitting/acc_clean`, `acc_fgsm`, `acc_pgd` and `cosine`, and `overfitting/found`, 1 if overfitting is
    detected: FGSM accuracy exceeds PGD accuracy by more than `gap`, or PGD accuracy has fallen by more than the
    fraction `fall` of its maximum and the cosine is below that at the maximum.

    The measurement uses the trained weights, not their average, in eval mode and float32, and does not change the state
    of random generators. All devices sum their counts and reach the same decision.

    Args:
        action: Reaction to overfitting. `warn`: a warning. `stop`: restore weights, averaged weights and optimiser
            state of the last measurement without overfitting, and end the training. `roll_back`: restore them and
            continue with the learning rate multiplied by `lr_factor`, at every detection; the position in the data and
            in the schedule are kept. Without an earlier measurement nothing is restored.
        every_n_steps: Optimiser steps between two measurements; null measures at the end of every epoch.
        max_examples: Use only the first images of the validation set.
        eps: Radius of both attacks; null follows the training attack.
        gap: Difference of accuracies in (0, 1), 0.2 for 20 points.
        fall: Fraction of the maximum in (0, 1).
        lr_factor: See `action`; in (0, 1).
        seed: Seed of PGD and of the random points in every measurement.

    Raises:
        ValueError: A number out of range; no held-out images.
    """

    def __init__(
        self,
        action: Action = "warn",
        every_n_steps: int | None = None,
        max_examples: int = 256,
        eps: Radius | None = None,
        gap: float = 0.2,
        fall: float = 0.5,
        lr_factor: float = 0.5,
        seed: int = 0,
    ) -> None:
        if action not in get_args(Action):
            raise ValueError(f"action must be warn, stop or roll_back, got {action!r}. Pass one of these.")
        for option, value in (("every_n_steps", every_n_steps), ("max_examples", max_examples)):
            if value is not None and value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}. Pass {option}: 1.")
        if eps is not None and not 0 < eps < math.inf:
            raise ValueError(f"eps must be finite and above 0, got {eps}. Omit it for that of the training.")
        for option, fraction in (("gap", gap), ("fall", fall), ("lr_factor", lr_factor)):
            if not 0 < fraction < 1:
                raise ValueError(f"{option} must be in (0, 1), got {fraction}. Omit it for the default.")
        self.action = action
        self.every_n_steps = every_n_steps
        self.max_examples = max_examples
        self.eps = eps
        self.gap = gap
        self.fall = fall
        self.lr_factor = lr_factor
        self.seed = seed
        self._best: Measurement | None = None
        self._best_eps = 0.0  # accuracies at different radii cannot be compared
        self._good: dict[str, Any] | None = None
        self._stopped = False
        self._last_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the best measurement and the snapshot to restore."""
        return {
            "best": None if self._best is None else asdict(self._best),
            "best_eps": self._best_eps,
            "good": self._good,
            "stopped": self._stopped,
            "last_step": self._last_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._best = None if state_dict["best"] is None else Measurement(**state_dict["best"])
        self._best_eps, self._good = state_dict["best_eps"], state_dict["good"]
        self._stopped, self._last_step = state_dict["stopped"], state_dict["last_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load this rank's images, and end a training that was stopped before."""
        self._x, self._y = _held_out(trainer, self.max_examples)
        trainer.should_stop = trainer.should_stop or self._stopped

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every `every_n_steps`; accumulated batches are one step."""
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step > self._last_step:
            values = self._check(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, unless `every_n_steps` is set."""
        if self.every_n_steps is None:
            # All ranks log the same; without `sync_dist` Lightning warns of epoch metrics that are not reduced.
            pl_module.log_dict(self._check(trainer, pl_module), sync_dist=True)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Measure and react; return the values to log."""
        attack: Attack = pl_module.attack  # type: ignore[assignment]  # of a RobustModule
        eps = attack.eps if self.eps is None else self.eps
        if eps == 0:  # at the start of a radius schedule
            return {}
        found = self._measure(trainer, pl_module, attack, eps)
        self._last_step = trainer.global_step
        best = self._best if self._best_eps == float(eps) else None
        overfits = found.overfits(best, self.gap, self.fall)
        if overfits:
            self._react(trainer, pl_module, found)
        else:
            if best is None or found.acc_pgd > best.acc_pgd:
                self._best, self._best_eps = found, float(eps)
            if self.action != "warn":
                self._good = _snapshot(trainer, pl_module)
        return {f"overfitting/{name}": value for name, value in (asdict(found) | {"found": float(overfits)}).items()}

    def _measure(self, trainer: Trainer, pl_module: LightningModule, attack: Attack, eps: Radius) -> Measurement:
        """Measure on all ranks together."""
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            counts = _counts(pl_module.model, self._x, self._y, attack, eps)  # type: ignore[arg-type]  # a Classifier
        clean, fgsm, pgd, cosines, known, n = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        return Measurement(clean / n, fgsm / n, pgd / n, cosines / max(known, 1))

    def _react(self, trainer: Trainer, pl_module: LightningModule, found: Measurement) -> None:
        """Warn, restore the last snapshot, and end or slow down the training."""
        consequence = ""
        if self.action != "warn" and self._good is not None:
            _restore(trainer, pl_module, self._good)
            consequence = f" Weights and optimiser are back at step {self._good['step']}."
        if self.action == "stop":
            trainer.should_stop = self._stopped = True
            consequence += " The training ends."
        if self.action == "roll_back":
            _scale_learning_rate(trainer, self.lr_factor)
            consequence += f" The learning rate is multiplied by {self.lr_factor:g}."
        rank_zero_warn(
            f"Catastrophic overfitting at step {trainer.global_step} (epoch {trainer.current_epoch + 1}): accuracy "
            f"{found.acc_fgsm:.1%} under FGSM, {found.acc_pgd:.1%} under PGD-10, gradient cosine {found.cosine:.2f}."
            f"{consequence}"
        )


def _held_out(trainer: Trainer, most: int) -> tuple[Tensor, Tensor]:
    """Load this rank's part of the first validation images."""
    source = trainer.fit_loop.epoch_loop.val_loop._data_source  # a module, or the loader that was passed to `fit`
    loader = source.dataloader() if source.is_defined() else None
    size = min(len(loader.dataset), most) if isinstance(loader, DataLoader) else 0  # type: ignore[arg-type]
    if size < trainer.world_size:
        raise ValueError(
            "OverfittingDetector needs at least one held-out image per device, "
            f"got {size} for {trainer.world_size}. Pass --data.val_size 256, or one validation loader to `fit`."
        )
    return fetch(trainer, loader, list(range(trainer.global_rank, size, trainer.world_size)))


def _counts(model: Classifier, x: Tensor, y: Tensor, attack: Attack, eps: Radius) -> Tensor:
    """Count correct predictions and sum the gradient cosines.

    Returns:
        Correct on clean, FGSM and PGD images, sum and number of the cosines, number of images; (6,).
    """
    norm, bounds = attack.norm, attack.bounds
    single = FGSM(eps, norm=norm, bounds=bounds)
    several = PGD(eps, step_size=float(eps) / 4, steps=10, norm=norm, bounds=bounds)
    ball = geometry_of(norm)
    with torch.enable_grad(), frozen(model):
        neighbours = ball.move(x, ball.uniform(x, float(eps)), float(eps), bounds)
        gradients = [loss_and_gradient(model, points, y, cross_entropy)[1] for points in (x, neighbours)]
    # A zero gradient has no direction.
    known = gradients[0].flatten(1).any(dim=1) & gradients[1].flatten(1).any(dim=1)
    attacked = [x, single(model, x, y), several(model, x, y)]
    with torch.no_grad(), frozen(model):
        correct = [(~misclassified(model(images), y)).sum() for images in attacked]
    cosines = (cosine(*gradients) * known).sum()
    return torch.stack([count.float() for count in (*correct, cosines, known.sum(), torch.tensor(len(y)).to(cosines))])


def _snapshot(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Copy weights, averages and optimiser states to the CPU, as in a checkpoint."""
    state: dict[str, Any] = {"state_dict": pl_module.state_dict(), "step": trainer.global_step}
    for averaging in _averagings(trainer):
        averaging.on_save_checkpoint(trainer, pl_module, state)
    state["optimizers"] = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
    copied: dict[str, Any] = apply_to_collection(state, Tensor, lambda t: t.detach().to("cpu", copy=True))
    return copied


def _restore(trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
    """Restore a snapshot, except for the learning rates."""
    for averaging in _averagings(trainer):
        averaging.on_load_checkpoint(trainer, pl_module, state)  # also loads the trained weights into the module
    if not _averagings(trainer):
        pl_module.load_state_dict(state["state_dict"])
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": saved, "param_groups": groups})


def _averagings(trainer: Trainer) -> list[WeightAveraging]:
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]


def _scale_learning_rate(trainer: Trainer, factor: float) -> None:
    """Scale the current and all scheduled learning rates.

    Both are part of checkpoints.
    """
    for config in trainer.lr_scheduler_configs:
        if hasattr(config.scheduler, "base_lrs"):  # ReduceLROnPlateau has none
            config.scheduler.base_lrs = [factor * rate for rate in config.scheduler.base_lrs]
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group.update({name: factor * group[name] for name in ("lr", "initial_lr") if name in group})
