"""Adversarial training of a classifier with any objective."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torchmetrics import MeanMetric

from lightning_paf.attacks import Attack
from lightning_paf.attacks.target import check_classes
from lightning_paf.data.readers.archives import UNLABELLED
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import check_labels, misclassified, undefined
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.parameter_groups import DecayRule
from lightning_paf.nn.second_derivatives import require_second_derivatives
from lightning_paf.nn.swap import Scope, swap_activations
from lightning_paf.nn.weights import load_classifier, training_dataset
from lightning_paf.objectives import Objective, StepResult
from lightning_paf.schedules import Schedule
from lightning_paf.specs import DatasetName, dataset_spec
from lightning_paf.speed.options import Speed
from lightning_paf.tasks.base import Task, default_optimizer
from lightning_paf.types import Batch, images_and_labels


class RobustModule(Task):
    """Adversarial training of one classifier.

    The module trains, callbacks evaluate: its validation measures clean accuracy only.

    Args:
        net: Network from images (N, C, H, W) to logits (N, num_classes).
        attack: The inner maximisation of the training. Evaluation attacks are set by `--val_attack` and `--autoattack`.
        objective: The training loss.
        dataset: Statistics and number of classes; follows `--data.dataset`.
        num_classes: Only for own images; follows `--data.num_classes`.
        channels: Only for own images; follows `--data.channels`.
        size: Only for own images, their height; follows `--data.size`.
        activation: Replaces every ReLU, SiLU and GELU of the network; null keeps them.
        activation_scope: One activation for the whole network (Dai et al., 2021), or one per stage, module or channel.
        normalize: Normalise inside the model. Pass false for networks that normalise inputs themselves, and for those
            of Dai et al. (2021), which are trained on raw [0, 1] images.
        optimizer: Optimiser of all parameters; by default that of Dai et al. (2021).
        schedule: Factor of the learning rate over the training.
        decay: Parameters with weight decay: `all` (Dai et al., 2021: alpha, beta, BatchNorm and biases too),
            `activation_free` (all but alpha and beta), or `weights` (neither activation, BatchNorm nor biases).
        speed: How a training step is computed; the defaults change nothing but rounding.
        init: Checkpoint of another training of the same network, whose weights this one starts with (fine-tuning).
            Read by `fit` only, and not when a training is resumed.
        init_head: `fresh` starts with a random classification layer instead of that of `init`, for other classes.

    Raises:
        ValueError: Parts that do not fit together.
    """

    model: Classifier

    def __init__(
        self,
        net: nn.Module,
        attack: Attack,
        objective: Objective,
        dataset: DatasetName = "cifar10",
        num_classes: int | None = None,
        activation: Activation | None = None,
        activation_scope: Scope = "network",
        normalize: bool = True,
        optimizer: OptimizerCallable = lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule: Schedule | None = None,
        decay: DecayRule = "weights",
        speed: Speed = Speed(),  # noqa: B008  # immutable; an instance, so that the command line shows its fields
        init: Path | None = None,
        channels: int | None = None,
        init_head: Literal["keep", "fresh"] = "keep",
        size: int | None = None,
    ) -> None:
        super().__init__(optimizer, schedule, decay, init)
        if _given_hyperparameters.get() is not None:
            # Plain values of a configuration; objects would make checkpoints unreadable, and `hparams.yaml` huge.
            self.save_hyperparameters()
        spec = dataset_spec(dataset, num_classes, channels, size)
        check_classes(attack.target, spec.num_classes)
        example = torch.zeros(2, spec.channels, spec.size, spec.size)
        if activation is not None:
            swap_activations(net, lambda: deepcopy(activation), scope=activation_scope, example=example)
        self.model = Classifier(net, spec, normalize)
        self.normalize = normalize
        self.attack = attack
        self.objective = objective
        self.objective.bind(self.model)
        self.speed = speed
        self._check_derivatives(example)
        self.val_accuracy = MeanMetric()
        self.test_accuracy = MeanMetric()
        self.load_init(partial(load_classifier, fresh_head=init_head == "fresh"))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, num_classes)."""
        logits: Tensor = self.model(x)
        return logits

    def setup(self, stage: str) -> None:
        """Prepare the network for training, before a strategy wraps it.

        Wrappers depend on the memory format.
        """
        super().setup(stage)
        if stage != "fit":
            return
        steps = self.objective.steps_per_batch
        if steps > 1 and self.trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"accumulate_grad_batches must be 1 for {type(self.objective).__name__}, which makes {steps} optimiser "
                f"steps per batch, got {self.trainer.accumulate_grad_batches}. "
                "Pass --trainer.accumulate_grad_batches 1."
            )
        self.speed.prepare(self.model)

    def teardown(self, stage: str) -> None:
        """Undo `setup`."""
        if stage == "fit":
            self.speed.restore(self.model)

    def configure_callbacks(self) -> list[Callback]:
        """Return a callback that undoes `setup` after an exception, unless there is one."""
        known = any(isinstance(callback, _UndoSetup) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if known else [_UndoSetup()]

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Check the weights, and normalise as in their training."""
        super().on_load_checkpoint(checkpoint)
        dataset = training_dataset(checkpoint)
        if dataset is not None and self.model.normalize_by(dataset):
            rank_zero_info(f"Normalisation: mean and std of {dataset.name}, as in the training of the checkpoint.")
        trained = (checkpoint.get("hyper_parameters") or {}).get("normalize", self.normalize)
        if trained != self.normalize:
            rank_zero_warn(
                f"model.normalize must be {str(trained).lower()} for the accuracy of this checkpoint, got "
                f"{str(self.normalize).lower()}. Pass --model.normalize {str(trained).lower()}, as in its training."
            )

    def on_train_start(self) -> None:
        """Notify the objective of the epoch; in a resumed one, with its original start."""
        self.objective.on_epoch_start(self.current_epoch, self._start_progress if self._steps else self.progress())

    def on_train_epoch_start(self) -> None:
        """Reset the means, and notify the objective of the epoch."""
        super().on_train_epoch_start()
        self.objective.on_epoch_start(self.current_epoch, self._start_progress)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Run the inner maximisation, and return the loss of the outer step."""
        x, y = self._checked(batch, batch_idx)
        with self.speed.step(self.model):
            result = self.objective(self.model, x, y, self.attack)
        loss: Tensor = result.loss + self.model.penalty()
        self.record(loss, **_accuracies(result, y), **result.logs)
        return loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Run `steps_per_batch` optimiser steps on a batch, each with a new gradient."""
        for number in range(self.objective.steps_per_batch):
            self.objective.begin_step(number)
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def on_after_backward(self) -> None:
        """Let the objective restore weights that it changed for the gradient."""
        self.objective.after_backward(self.model)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure clean accuracy."""
        x, y = self._checked(batch, batch_idx)
        self.val_accuracy(~misclassified(self.model(x), y))
        self.log("val/acc", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure clean accuracy."""
        x, y = self._checked(batch, batch_idx)
        self.test_accuracy(~misclassified(self.model(x), y))
        self.log("test/acc", self.test_accuracy)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return class probabilities and labels.

        Probabilities are (N, num_classes), and NaN where the logits are not finite; labels are (N,), -1 if unknown.

        Args:
            batch: Images (N, C, H, W) and labels (N,), or images alone, also in a list.
            batch_idx: Not used.
            dataloader_idx: Not used.
        """
        alone = batch[0] if isinstance(batch, list | tuple) and len(batch) == 1 else batch
        if isinstance(alone, Tensor):
            batch = alone, torch.full((len(alone),), UNLABELLED)
        x, y = images_and_labels(batch)
        logits = self.model(x)
        return {"probabilities": logits.softmax(1).masked_fill(undefined(logits)[:, None], torch.nan), "label": y}

    def _built_optimizer(self) -> Optimizer:
        """Build the optimiser, and give it the slope of the objective if it needs that."""
        optimizer = super()._built_optimizer()
        if hasattr(optimizer, "sensitivity"):
            slope = getattr(self.objective, "slope", None)
            if slope is None:
                raise ValueError(
                    f"objective must be TerminalCost for {type(optimizer).__name__}, which linearises the cost, got "
                    f"{type(self.objective).__name__}. Pass --model.objective TerminalCost."
                )
            optimizer.sensitivity = partial(slope, self.model)
        return optimizer

    def _checked(self, batch: Batch, batch_idx: int) -> Batch:
        """Images and labels, checked on the CPU, and in the first batch elsewhere."""
        x, y = images_and_labels(batch)
        if batch_idx == 0 or y.device.type == "cpu":
            check_labels(y, len(x), self.model.num_classes)
        return x, y

    def _check_derivatives(self, example: Tensor) -> None:
        """Check that the network has second derivatives if the objective needs them."""
        if not self.objective.needs_double_backward:
            return
        name = type(self.objective).__name__
        if self.speed.compile:
            raise ValueError(
                f"speed.compile must be false for {name}, got true: a compiled network has no second derivatives. "
                "Pass --model.speed.compile false, or another --model.objective."
            )
        require_second_derivatives(self.model, example, name)


class _UndoSetup(Callback):
    """Restores the network after an exception, where Lightning skips `teardown`."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the network, and explain an error of `view`."""
        pl_module.teardown("fit")
        if "view size is not compatible" in str(exception):
            exception.args = (
                "Parameters and images must be contiguous for an optimizer, a callback or a network that calls `view`, "
                f"got the channels-last layout. Pass --model.speed.channels_last false. ({exception})",
            )


_sgd = default_optimizer(RobustModule, "_sgd")


def _accuracies(result: StepResult, y: Tensor) -> dict[str, Tensor]:
    """Return adversarial accuracy of a batch, and clean accuracy if it was evaluated.

    `attack_success` is the fraction of images that are correct when clean and wrong under attack.
    """
    labels = hard_labels(y)
    attacked = ~misclassified(result.logits, labels)
    found = {"acc_adv": attacked.float().mean()}
    if result.clean_logits is not None:
        clean = ~misclassified(result.clean_logits, labels)
        found |= {"clean_acc": clean.float().mean(), "attack_success": (clean & ~attacked).float().mean()}
    return found
