"""The LightningModule: the inner maximisation and the outer step, whatever the method."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from lightning_paf.attacks import Attack
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified, undefined
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.parameter_groups import DecayRule, parameter_groups
from lightning_paf.nn.second_derivatives import require_second_derivatives
from lightning_paf.nn.swap import Scope, swap_activations
from lightning_paf.nn.weights import key_difference, load_classifier
from lightning_paf.objectives import Objective, StepResult
from lightning_paf.runs.weights_origin import WeightsOrigin
from lightning_paf.schedules import Cosine, Schedule
from lightning_paf.specs import DatasetName, dataset_spec
from lightning_paf.speed.options import Speed
from lightning_paf.types import Batch


class RobustModule(LightningModule):
    """Adversarial training of one classifier.

    The module trains, callbacks evaluate: validation here is clean accuracy only.

    Args:
        net: Network from images (N, C, H, W) to logits (N, num_classes).
        attack: The inner maximisation of the training. What judges the model is given to `--val_attack` and
            `--autoattack` instead.
        objective: The training loss.
        dataset: Statistics and number of classes; follows `--data.dataset`.
        num_classes: Only for `--data.dataset npz`; follows `--data.num_classes`.
        channels: Only for `--data.dataset npz`; follows `--data.channels`.
        activation: Replaces every ReLU, SiLU and GELU of the network; null keeps the network as it is.
        activation_scope: One activation for the whole network (Dai et al., 2021), or one per stage, module or channel.
        normalize: Normalise inside the model. The networks of Dai et al. (2021) are trained on raw [0, 1] images and
            want false; so does a network that normalises by itself.
        optimizer: Optimiser of all parameters; by default that of Dai et al. (2021).
        schedule: Factor of the learning rate over the training.
        decay: What weight decay acts on: `all` (Dai et al., 2021: alpha, beta, BatchNorm and biases too),
            `activation_free` (all but alpha and beta), or `weights` (neither activation, BatchNorm nor biases).
        speed: How a training step is computed; the defaults change nothing but rounding.
        init: Checkpoint of another training of the same network, whose weights this one begins with (fine-tuning).
            Not read again when the training is continued, nor by other commands than `fit`.

    Raises:
        ValueError: Parts that do not fit together.
    """

    untrained: WeightsOrigin | None = None
    """Origin of the weights where a command evaluates the starting weights on purpose."""

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
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if isinstance(self.hparams.get("net"), nn.Module):
            # Built by hand rather than from a config: live modules would make the checkpoint unreadable.
            self.hparams.clear()
        spec = dataset_spec(dataset, num_classes, channels)
        if activation is not None:
            example = torch.zeros(2, spec.channels, spec.size, spec.size)
            swap_activations(net, lambda: deepcopy(activation), scope=activation_scope, example=example)
        self.model = Classifier(net, spec, normalize)
        self.attack = attack
        self.objective = objective
        self.objective.bind(self.model)
        self.speed = speed
        self._check_derivatives(torch.zeros(2, spec.channels, spec.size, spec.size))
        self.optimizer = _as_function(optimizer)
        self.schedule = schedule or Cosine()
        self.decay: DecayRule = decay
        self.val_accuracy = MeanMetric()
        self.test_accuracy = MeanMetric()
        self._sums, self._steps, self._epoch_began_at = dict[str, Tensor](), 0, 0.0
        self.init = init
        self._begin_with_init()  # here, so that copies of the module, as averaging makes them, begin with it, too

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, num_classes)."""
        logits: Tensor = self.model(x)
        return logits

    def setup(self, stage: str) -> None:
        """Prepare the network for training; before it is wrapped, since wrappers look at the layout of weights."""
        if stage != "fit":
            return
        if self.init is not None and not self.init.is_file():
            raise ValueError(
                f"There is no checkpoint {self.init} to begin with. Train it first, as the header of the recipe says, "
                "or pass another --model.init, or null to begin anew."
            )
        if self.objective.steps_per_batch > 1 and self.trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"{type(self.objective).__name__} makes {self.objective.steps_per_batch} optimiser steps a batch, so "
                "gradients cannot be accumulated over batches. Pass --trainer.accumulate_grad_batches 1."
            )
        self.speed.prepare(self.model)

    def teardown(self, stage: str) -> None:
        """Leave an ordinary network."""
        if stage == "fit":
            self.speed.restore(self.model)

    def on_fit_start(self) -> None:
        """Give every rank its own random starts and augmentations; `seed_everything` gives all ranks the same."""
        self._steps = 0
        if self.trainer.world_size > 1:
            # Far apart: rank 1 of seed 0 must not repeat rank 0 of seed 1.
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.global_rank)

    def on_train_start(self) -> None:
        """Tell the objective the epoch, also where training is resumed in the middle of one: as it was told then."""
        self.objective.on_epoch_start(self.current_epoch, self._epoch_began_at if self._steps else self._progress())

    def on_train_epoch_start(self) -> None:
        """Begin new means, and tell the objective the epoch."""
        self._sums, self._steps = {}, 0
        self._epoch_began_at = self._progress()
        self.objective.on_epoch_start(self.current_epoch, self._epoch_began_at)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The whole inner maximisation, and the loss of the outer step."""
        x, y = batch
        with self.speed.step(self.model):
            result = self.objective(self.model, x, y, self.attack)
        loss: Tensor = result.loss + self.model.penalty()
        self._refuse_nan(loss)
        values = {"loss": loss.detach(), **_accuracies(result, y), **result.logs}
        self._sums = {name: self._sums.get(name, 0) + value.float() for name, value in values.items()}
        self._steps += 1
        return loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step, or as many on the same batch as the objective wants; each computes its own gradient."""
        for number in range(self.objective.steps_per_batch):
            self.objective.begin_step(number)
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def on_after_backward(self) -> None:
        """Let the objective restore weights that it changed for the gradient."""
        self.objective.after_backward(self.model)

    def on_train_epoch_end(self) -> None:
        """Log the means over the steps of the epoch."""
        for name, total in self._sums.items():
            self.log(f"train/{name}", total / self._steps, prog_bar=name in ("loss", "acc_adv"), sync_dist=True)

    def epoch_state(self) -> dict[str, Any]:
        """What this rank knows of the present epoch, for a checkpoint; the trainer would forget means that it keeps."""
        sums = {name: total.cpu() for name, total in self._sums.items()}
        return {"sums": sums, "steps": self._steps, "began_at": self._epoch_began_at}

    def load_epoch_state(self, state: dict[str, Any]) -> None:
        """Continue an epoch."""
        self._sums = {name: total.to(self.device) for name, total in state["sums"].items()}
        self._steps, self._epoch_began_at = state["steps"], state["began_at"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean accuracy; robust accuracy is a callback's."""
        x, y = batch
        self.val_accuracy(~misclassified(self.model(x), y))
        self.log("val/acc", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean accuracy; robust accuracy is a callback's."""
        x, y = batch
        self.test_accuracy(~misclassified(self.model(x), y))
        self.log("test/acc", self.test_accuracy)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Probabilities (N, num_classes), NaN where the logits are not finite, and labels (N,)."""
        x, y = batch
        logits = self.model(x)
        return {"probabilities": logits.softmax(1).masked_fill(undefined(logits)[:, None], torch.nan), "label": y}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip globally as the trainer says, then let activations clip their own, in the order of Dai et al. (2021)."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for layer in self.model.modules():
            if isinstance(layer, Activation):
                layer.clip_gradients()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over decay groups, and the schedule stepped at every optimiser step."""
        optimizer = self.optimizer(parameter_groups(self, self.decay))
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "The schedule needs to know how long the training is, but the trainer has no end. "
                "Pass --trainer.max_epochs or --trainer.max_steps."
            )
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse weights of another network with a short key difference."""
        difference = key_difference(self.state_dict(), checkpoint["state_dict"])
        if difference:
            raise ValueError(
                f"The checkpoint holds another network than {type(self.model.net).__name__} with this configuration:\n"
                f"{difference}\nPass the config.yaml that was saved beside the checkpoint: --config RUN/config.yaml."
            )

    def _check_derivatives(self, example: Tensor) -> None:
        """Refuse an objective that differentiates a gradient where that cannot be done."""
        if not self.objective.needs_double_backward:
            return
        if self.speed.compile:
            raise ValueError(
                f"A compiled network has no second derivatives, but {type(self.objective).__name__} differentiates a "
                "gradient. Pass --model.speed.compile false, or another --model.objective."
            )
        require_second_derivatives(self.model, example, type(self.objective).__name__)

    def _begin_with_init(self) -> None:
        """Take the classifier's weights; what the objective of that training has learned stays behind."""
        if self.init is not None and self.init.is_file():
            load_classifier(self.model, self.init)

    def _progress(self) -> float:
        return min(1.0, self.global_step / self.trainer.estimated_stepping_batches)

    def _refuse_nan(self, loss: Tensor) -> None:
        """Stop at the first loss that is not finite, before it reaches the weights."""
        if torch.isfinite(loss):
            return
        broken = [name for name, value in self.named_parameters() if not torch.isfinite(value).all()]
        scalars = {name: round(value.item(), 4) for name, value in self.named_parameters() if value.numel() == 1}
        where = f"not finite: {', '.join(broken)}" if broken else "all parameters are still finite"
        raise ValueError(
            f"The loss must be finite, but it is {loss.item()} at step {self.global_step} ({where}; parameters of one "
            f"number: {scalars}). Lower the learning rate, or pass --trainer.gradient_clip_val 1 or "
            "--trainer.precision 32."
        )


def _accuracies(result: StepResult, y: Tensor) -> dict[str, Tensor]:
    """Shares of a batch: right as trained on and, where the objective saw the clean images, right as these.

    And those that the attack has turned: right as clean images, wrong as attacked.
    """
    labels = hard_labels(y)
    attacked = ~misclassified(result.logits, labels)
    shares = {"acc_adv": attacked.float().mean()}
    if result.clean_logits is not None:
        clean = ~misclassified(result.clean_logits, labels)
        shares |= {"clean_acc": clean.float().mean(), "attack_success": (clean & ~attacked).float().mean()}
    return shares


def _as_function(optimizer: OptimizerCallable) -> OptimizerCallable:
    """A function, which copies of the module (weight averaging makes one) share.

    What the command line gives is an object that holds the command line, the trainer, and the processes it has started.
    """
    return lambda parameters: optimizer(parameters)
