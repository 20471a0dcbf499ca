"""Base class of the training tasks."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_paf.data import RobustDataModule
from lightning_paf.data.base import ImageDataModule
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.modes import buffers_kept, frozen
from lightning_paf.nn.parameter_groups import DecayRule, parameter_groups
from lightning_paf.nn.weights import key_difference, load_weights
from lightning_paf.runs.weights_origin import WeightsOrigin
from lightning_paf.schedules import Cosine, Schedule
from lightning_paf.specs import DatasetSpec
from lightning_paf.utils.terminal import clause


class Task(LightningModule):
    """Base class of the modules that train a network.

    A subclass sets `model` with its attribute `net`, calls `load_init` at the end of its constructor, and passes the
    values of each training step to `record`, which logs their means over the epoch as `train/{name}`.

    Args:
        optimizer: Optimiser of all parameters.
        schedule: Factor of the learning rate over the training; by default a cosine.
        decay: Parameters that weight decay acts on.
        init: Checkpoint of another training whose weights this one starts with.
    """

    model: nn.Module
    kind: ClassVar[str] = "classifier"
    """Kind of `model`; commands and callbacks that evaluate classifiers refuse others."""
    data: ClassVar[type[ImageDataModule]] = RobustDataModule
    """Data module that the command line builds for the task."""
    plug_ins: ClassVar[Mapping[str, type]] = {}
    """Base of the classes for an argument, where classification has another."""
    instead_of_predict: ClassVar[str] = ""
    """Command to run instead of `predict`, a sentence; empty for classifiers."""
    val_metrics: tuple[str, ...] = ("val/acc",)
    """Metrics that the validation logs, for callbacks that monitor them."""
    untrained: WeightsOrigin | None = None
    """Origin of the weights where a command evaluates the starting weights on purpose."""

    def __init__(
        self, optimizer: OptimizerCallable, schedule: Schedule | None, decay: DecayRule, init: Path | None
    ) -> None:
        super().__init__()
        self.optimizer = _without_parser(optimizer)
        self.schedule = schedule or Cosine()
        self.decay: DecayRule = decay
        self.init = init
        self._sums, self._steps, self._start_progress = dict[str, Tensor](), 0, 0.0

    def load_init(self, load: Callable[[Any, Path], None] = load_weights) -> None:
        """Load the weights of `init`.

        Called in the constructor, so that copies made by weight averaging have them too.

        Args:
            load: Function that loads a checkpoint into `model`.
        """
        if self.init is not None and self.init.is_file():
            load(self.model, self.init)

    def trial_pass(self, images: Tensor) -> None:
        """Run `model` on images (N, C, H, W), to check that it accepts their shape."""
        self.model(images)

    def check_start(self, spec: DatasetSpec) -> None:
        """Check the optimiser, and the network on one image of known size.

        Raises:
            ValueError: The network cannot process the images, or the optimiser refuses its arguments.
        """
        self._built_optimizer()
        if spec.name == "npz":
            return
        shape = (1, *spec.shape)
        with frozen(self.model), torch.no_grad(), torch.random.fork_rng([]):  # a random network draws numbers
            try:
                self.trial_pass(torch.zeros(shape))
            except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
                reason = clause(error)
                hint = " Pass another --model.net, or other arguments (TimmNet: dict_kwargs.in_chans)."
                raise ValueError(
                    f"{type(self.model.net).__name__} must accept images of shape {shape} from {spec.name}, got: "
                    f"{reason}.{'' if 'Pass ' in reason else hint}"
                ) from error

    def check_predict(self) -> None:
        """Refuse `predict` if the model is no classifier."""
        if self.instead_of_predict:
            raise ValueError(f"predict must have a classifier, got {type(self).__name__}. {self.instead_of_predict}")

    def setup(self, stage: str) -> None:
        """Check that `init` exists, and that the learning rate is that of the optimiser."""
        if stage == "predict":
            self.check_predict()
        callbacks = self._trainer.callbacks if self._trainer else []  # type: ignore[attr-defined]
        if any(isinstance(callback, LearningRateFinder) for callback in callbacks):
            raise ValueError(
                "The learning rate must be an argument of the optimizer, which is recorded, got a LearningRateFinder. "
                "Omit it, and compare short runs with different --model.optimizer.lr."
            )
        if stage == "fit" and self.init is not None and not self.init.is_file():
            raise ValueError(
                f"--model.init must be an existing checkpoint, got {self.init}. Train it first (command in the header "
                "of the recipe), or pass another --model.init, or null for random weights."
            )

    def on_fit_start(self) -> None:
        """Seed every rank differently, for its random starts and augmentations.

        `seed_everything` seeds all ranks alike.
        """
        self._steps = 0
        if self.trainer.world_size > 1:
            # Far apart: rank 1 of seed 0 must not repeat rank 0 of seed 1.
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.global_rank)

    def on_train_epoch_start(self) -> None:
        """Reset the means."""
        self._sums, self._steps = {}, 0
        self._start_progress = self.progress()

    def on_train_epoch_end(self) -> None:
        """Log the means over the steps of the epoch, and the learning rate at its end."""
        for name, total in self._sums.items():
            self.log(f"train/{name}", total / self._steps, prog_bar=name in ("loss", "acc_adv"), sync_dist=True)
        if self._steps:
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], sync_dist=True)

    def on_validation_start(self) -> None:
        """Check that there is one loader."""
        self._check_loaders("validation", self.trainer.num_val_batches)

    def on_test_start(self) -> None:
        """Check that there is one loader."""
        self._check_loaders("test", self.trainer.num_test_batches)

    def on_predict_start(self) -> None:
        """Check that there is one loader."""
        self._check_loaders("predict", self.trainer.num_predict_batches)

    def record(self, loss: Tensor, **values: Tensor) -> None:
        """Add the values of one training step to the means of the epoch.

        Args:
            loss: Loss of the step, a scalar.
            **values: Other scalars to log.

        Raises:
            ValueError: The loss is not finite. Raised before the loss reaches the weights.
        """
        self._check_finite(loss)
        values = {"loss": loss.detach(), **values}
        self._sums = {name: self._sums.get(name, 0) + value.float() for name, value in values.items()}
        self._steps += 1

    def progress(self) -> float:
        """Return the fraction of the optimiser steps that are done."""
        return min(1.0, self.global_step / self.trainer.estimated_stepping_batches)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Run an optimiser step.

        An optimiser with a context `perturbed`, as `SAM`, gets the gradient at the perturbed weights.
        """
        # Of the optimiser itself; Lightning's wrapper has a copy of its attributes.
        perturbed = getattr(self.optimizers(use_pl_optimizer=False), "perturbed", None)
        if perturbed is not None and optimizer_closure is not None:
            optimizer_closure = partial(self._evaluate_twice, perturbed, optimizer_closure)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def _evaluate_twice(self, perturbed: Callable[[], AbstractContextManager[None]], closure: Callable[[], Any]) -> Any:
        """Compute the gradient at perturbed weights, without effect on means and buffers."""
        result = closure()
        sums, steps = self._sums, self._steps
        with perturbed(), buffers_kept(self, alone=False):
            closure()
        self._sums, self._steps = sums, steps
        return result

    def epoch_state(self) -> dict[str, Any]:
        """Return this rank's means of the current epoch, which Lightning does not save."""
        sums = {name: total.cpu() for name, total in self._sums.items()}
        return {"sums": sums, "steps": self._steps, "began_at": self._start_progress}

    def load_epoch_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `epoch_state`."""
        self._sums = {name: total.to(self.device) for name, total in state["sums"].items()}
        self._steps, self._start_progress = state["steps"], state["began_at"]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Apply global clipping, then that of the activations, as Dai et al. (2021)."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for layer in self.model.modules():
            if isinstance(layer, Activation):
                layer.clip_gradients()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser over decay groups, and the schedule of its steps."""
        optimizer, accumulated = self._built_optimizer(), self.trainer.accumulate_grad_batches
        if hasattr(optimizer, "evaluations") and accumulated > 1:
            raise ValueError(
                f"accumulate_grad_batches must be 1 for {type(optimizer).__name__}, which evaluates one batch several "
                f"times per step, got {accumulated}. Pass --trainer.accumulate_grad_batches 1."
            )
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "The length of the training must be set for the learning-rate schedule, got max_epochs=-1. "
                "Pass --trainer.max_epochs or --trainer.max_steps."
            )
        scheduler: Any = self.schedule.scheduler(optimizer, steps)
        if "monitor" in scheduler:
            scheduler["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Check the weights."""
        if difference := key_difference(self.state_dict(), checkpoint["state_dict"]):
            raise ValueError(
                f"The checkpoint must hold a {type(self.model.net).__name__} of this configuration, got another "
                f"network:\n{difference}\nPass the config.yaml that was saved next to the checkpoint: "
                "--config RUN/config.yaml."
            )

    def _check_loaders(self, stage: str, batches: Sequence[float]) -> None:
        if len(batches) > 1:
            raise ValueError(
                f"{type(self).__name__} must have one {stage} loader, got {len(batches)}. Pass one of a ConcatDataset, "
                "or run each with a Trainer."
            )

    def _built_optimizer(self) -> Optimizer:
        try:
            return self.optimizer(parameter_groups(self, self.decay))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"--model.optimizer must accept its arguments, got: {clause(error)}. Pass other --model.optimizer "
                "options; for an optimizer without parameter groups, such as LBFGS, also --model.decay all."
            ) from error

    def _check_finite(self, loss: Tensor) -> None:
        if torch.isfinite(loss):
            return
        not_finite = [name for name, value in self.named_parameters() if not torch.isfinite(value).all()]
        scalars = {name: round(value.item(), 4) for name, value in self.named_parameters() if value.numel() == 1}
        where = f"not finite: {', '.join(not_finite)}" if not_finite else "all parameters are still finite"
        raise ValueError(
            f"The loss must be finite, got {loss.item()} at step {self.global_step} ({where}; scalar parameters: "
            f"{scalars}). Lower the learning rate, or pass --trainer.gradient_clip_val 1 or --trainer.precision 32."
        )


def default_optimizer(task: type[Task], name: str) -> OptimizerCallable:
    """Return the default optimiser of a task, pickled by a name.

    The module of the task must assign it to this name. The default itself is a lambda expression, from which the parser
    reads its options.
    """
    optimizer: OptimizerCallable = inspect.signature(task).parameters["optimizer"].default
    optimizer.__qualname__ = name
    return optimizer


def _without_parser(optimizer: OptimizerCallable) -> OptimizerCallable:
    """Return an optimizer function that can be copied and pickled.

    The value from the command line holds references to the parser, the trainer and its processes.
    """
    arguments: tuple[Any, ...] = getattr(optimizer, "args", ())
    classes: list[Any] = [value for value in arguments if isinstance(value, type)]
    if not classes:
        return optimizer
    keywords: dict[str, Any] = optimizer.keywords  # type: ignore[attr-defined]
    return partial(classes[0], **{k: _without_parser(v) if isinstance(v, partial) else v for k, v in keywords.items()})
