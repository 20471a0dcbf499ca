"""Detect catastrophic overfitting of single-step training, and undo it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_paf.attacks import FGSM, PGD, Attack, loss_and_gradient
from lightning_paf.functional.alignment import cosine
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.types import Radius

Action = Literal["warn", "stop", "roll_back"]


@dataclass(frozen=True)
class Look:
    """Measurement of a network in training on held-out images.

    Attributes:
        acc_clean: Accuracy on the images.
        acc_fgsm: Accuracy under FGSM.
        acc_pgd: Accuracy under PGD-10.
        cosine: Mean cosine between the loss's gradients at an image and at a random point of its ball.
    """

    acc_clean: float
    acc_fgsm: float
    acc_pgd: float
    cosine: float

    def overfits(self, best: "Look | None", gap: float, fall: float) -> bool:
        """Whether single steps no longer find what several steps do.

        Args:
            best: The earlier look with the largest `acc_pgd`, if there is one.
            gap: Largest credible advantage of FGSM accuracy over PGD accuracy.
            fall: Largest credible loss of PGD accuracy, as a share of the best, while the cosine falls, too.
        """
        fell = best is not None and self.acc_pgd < (1 - fall) * best.acc_pgd and self.cosine < best.cosine
        return self.acc_fgsm - self.acc_pgd > gap or fell


class OverfittingDetector(Callback):
    """Looks for catastrophic overfitting: the network withstands the single step of its training, and nothing else.

    At the end of every epoch, or every few steps, it measures on held-out images the clean, FGSM and PGD-10 (steps of
    eps / 4) accuracy, and the mean cosine between the loss's gradients at an image and at a uniform random point of its
    ball (Andriushchenko and Flammarion, 2020); logged as `overfitting/acc_clean`, `acc_fgsm`, `acc_pgd`, `cosine`, and
    `found`, 1 at a sign of overfitting. A sign is: FGSM accuracy exceeds PGD accuracy by more than `gap`; or PGD
    accuracy has lost more than the share `fall` of its maximum while the cosine is below that at the maximum.

    What is measured are the weights that are trained, not their average, in eval mode and float32. Random generators
    are left as found. Several devices share the images and, since they add up what they count, decide alike.

    Args:
        action: What follows a sign. `warn`: one line. `stop`: weights, averaged weights and the state of the optimiser
            return to the last look without a sign, and the training ends. `roll_back`: they return, and the training
            continues with a learning rate multiplied by `lr_factor`, again at every further sign; the position in the
            data and in the schedule stay. Without an earlier look nothing returns.
        every_n_steps: Optimiser steps between two looks; null for one at the end of every epoch.
        max_examples: Use at most the first so many images of the validation set.
        eps: Radius of both attacks; null for that of the training's attack, also while it changes.
        gap: In accuracy, 0.2 for 20 points.
        fall: As a share of the maximum.
        lr_factor: See `action`.
        seed: Of PGD and of the random points, the same at every look.

    Raises:
        ValueError: A number out of its range; no held-out images.
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
        if action not in ("warn", "stop", "roll_back"):
            raise ValueError(f"action must be warn, stop or roll_back, but is {action!r}. Choose one of these.")
        for option, value in (("every_n_steps", every_n_steps), ("max_examples", max_examples)):
            if value is not None and value < 1:
                raise ValueError(f"{option} must be at least 1, but {option}={value}. Pass {option}: 1.")
        for option, share in (("gap", gap), ("fall", fall), ("lr_factor", lr_factor)):
            if not 0 < share < 1:
                raise ValueError(f"{option} is a share in (0, 1), but {option}={share}. Leave it out for the default.")
        self.action = action
        self.every_n_steps = every_n_steps
        self.max_examples = max_examples
        self.eps = eps
        self.gap = gap
        self.fall = fall
        self.lr_factor = lr_factor
        self.seed = seed
        self._best: Look | None = None
        self._best_eps = 0.0  # where the radius changes, accuracies cannot be compared
        self._good: dict[str, Any] | None = None
        self._stopped = False
        self._last_step = 0

    def state_dict(self) -> dict[str, Any]:
        """What later looks are compared with, and what would return."""
        return {
            "best": None if self._best is None else asdict(self._best),
            "best_eps": self._best_eps,
            "good": self._good,
            "stopped": self._stopped,
            "last_step": self._last_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self._best = None if state_dict["best"] is None else Look(**state_dict["best"])
        self._best_eps, self._good = state_dict["best_eps"], state_dict["good"]
        self._stopped, self._last_step = state_dict["stopped"], state_dict["last_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fetch this device's share of the images; end at once where a sign has ended the training before."""
        self._x, self._y = _held_out(trainer, self.max_examples)
        trainer.should_stop = trainer.should_stop or self._stopped

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, if it is time; accumulated batches are one step."""
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step > self._last_step:
            values = self._check(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, where epochs are what counts."""
        if self.every_n_steps is None:
            # All ranks log the same; Lightning warns of epoch metrics that are not reduced all the same.
            pl_module.log_dict(self._check(trainer, pl_module), sync_dist=True)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Look and act; what is logged."""
        attack: Attack = pl_module.attack  # type: ignore[assignment]  # of a RobustModule
        eps = attack.eps if self.eps is None else self.eps
        if eps == 0:  # a radius that has yet to grow
            return {}
        look = self._look(trainer, pl_module, attack, eps)
        self._last_step = trainer.global_step
        best = self._best if self._best_eps == float(eps) else None
        found = look.overfits(best, self.gap, self.fall)
        if found:
            self._act(trainer, pl_module, look)
        else:
            if best is None or look.acc_pgd > best.acc_pgd:
                self._best, self._best_eps = look, float(eps)
            if self.action != "warn":
                self._good = _snapshot(trainer, pl_module)
        return {f"overfitting/{name}": value for name, value in (asdict(look) | {"found": float(found)}).items()}

    def _look(self, trainer: Trainer, pl_module: LightningModule, attack: Attack, eps: Radius) -> Look:
        """Measure on all devices together."""
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            counts = _counts(pl_module.model, self._x, self._y, attack, eps)  # type: ignore[arg-type]  # a Classifier
        clean, fgsm, pgd, cosines, known, n = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        return Look(clean / n, fgsm / n, pgd / n, cosines / max(known, 1))

    def _act(self, trainer: Trainer, pl_module: LightningModule, look: Look) -> None:
        """Say it in one line; return to the last good state, and end or slow down."""
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
            f"{look.acc_fgsm:.1%} under FGSM, {look.acc_pgd:.1%} under PGD-10, gradient cosine {look.cosine:.2f}."
            f"{consequence}"
        )


def _held_out(trainer: Trainer, most: int) -> tuple[Tensor, Tensor]:
    """This rank's part of the first validation images, prepared and moved as batches are."""
    source = trainer.datamodule if hasattr(trainer, "datamodule") and trainer.datamodule else trainer.lightning_module
    loader = source.val_dataloader()
    size = min(len(loader.dataset), most) if loader is not None else 0
    if size < trainer.world_size:
        raise ValueError(
            f"OverfittingDetector needs held-out images on every device, but there are {size} for "
            f"{trainer.world_size}. Pass --data.val_size 256."
        )
    numbers = list(range(trainer.global_rank, size, trainer.world_size))
    at_once = getattr(loader.dataset, "__getitems__", None)
    rows = at_once(numbers) if at_once else [loader.dataset[i] for i in numbers]
    x, y = trainer.strategy.batch_to_device(loader.collate_fn(rows))
    return x.float(), y


def _counts(model: Classifier, x: Tensor, y: Tensor, attack: Attack, eps: Radius) -> Tensor:
    """Correct on clean, FGSM and PGD images, sum and number of the cosines, number of images; (6,)."""
    norm, bounds = attack.norm, attack.bounds
    single = FGSM(eps, norm=norm, bounds=bounds)
    several = PGD(eps, step_size=float(eps) / 4, steps=10, norm=norm, bounds=bounds)
    ball = geometry_of(norm)
    with torch.enable_grad(), frozen(model):
        beside = ball.move(x, ball.uniform(x, float(eps)), float(eps), bounds)
        gradients = [loss_and_gradient(model, place, y, cross_entropy)[1] for place in (x, beside)]
    # A zero gradient has no direction.
    known = gradients[0].flatten(1).any(dim=1) & gradients[1].flatten(1).any(dim=1)
    attacked = [x, single(model, x, y), several(model, x, y)]
    with torch.no_grad(), frozen(model):
        correct = [(~misclassified(model(images), y)).sum() for images in attacked]
    cosines = (cosine(*gradients) * known).sum()
    return torch.stack([count.float() for count in (*correct, cosines, known.sum(), torch.tensor(len(y)).to(cosines))])


def _snapshot(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Weights, their average and the optimisers, as a checkpoint holds them, on the CPU."""
    state: dict[str, Any] = {"state_dict": pl_module.state_dict(), "step": trainer.global_step}
    for averaging in _averagings(trainer):
        averaging.on_save_checkpoint(trainer, pl_module, state)
    state["optimizers"] = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
    copied: dict[str, Any] = apply_to_collection(state, Tensor, lambda t: t.detach().to("cpu", copy=True))
    return copied


def _restore(trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
    """Return to a snapshot; learning rates stay."""
    averagings = _averagings(trainer)
    for averaging in averagings:
        averaging.on_load_checkpoint(trainer, pl_module, state)  # puts the trained weights into the module, too
    if not averagings:
        pl_module.load_state_dict(state["state_dict"])
    for optimizer, kept in zip(trainer.optimizers, state["optimizers"], strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": kept, "param_groups": groups})


def _averagings(trainer: Trainer) -> list[WeightAveraging]:
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]


def _scale_learning_rate(trainer: Trainer, factor: float) -> None:
    """Now and in all that the schedules will say; both are part of checkpoints."""
    for config in trainer.lr_scheduler_configs:
        config.scheduler.base_lrs = [factor * rate for rate in config.scheduler.base_lrs]
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] = factor * group[name]
