"""The interface of training objectives."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier


@dataclass(frozen=True)
class StepResult:
    """Result of one training step.

    Attributes:
        loss: Scalar, with its graph.
        logits: (N, num_classes) for the images that the network was trained on, for the training accuracy.
        logs: Further scalars to log, by name; they are detached.
        clean_logits: (N, num_classes) for the clean images, if the objective computes them anyway.
    """

    loss: Tensor
    logits: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    clean_logits: Tensor | None = None

    def __post_init__(self) -> None:
        """Detach the logs."""
        object.__setattr__(self, "logs", {name: value.detach() for name, value in self.logs.items()})


class Objective(nn.Module, ABC):
    """The loss of the outer minimisation, with any state that it needs.

    It is a module, so that optimiser, checkpoint, DDP and weight averaging include its parameters without extra code.
    Tests over all subclasses check two rules: every trainable parameter gets a gradient at every step (otherwise DDP
    stops), and no tensor with a graph is kept between steps (weight averaging copies the module).
    """

    needs_double_backward: bool = False
    """Whether it differentiates gradients; excludes fused attention and compilation."""

    steps_per_batch: int = 1
    """Optimiser steps per batch, each with calls of `begin_step` and `forward`."""

    def bind(self, model: Classifier) -> None:
        """Build heads once the number of features is known; by default nothing."""

    @abstractmethod
    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Compute the loss of one batch.

        Args:
            model: The classifier in training, in training mode.
            x: Images (N, C, H, W) in [0, 1].
            y: Labels (N,), or distributions over the classes (N, num_classes) if the data are mixed or smoothed;
                `functional.losses.hard_labels` converts both to labels.
            attack: The inner maximisation.
        """

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Update warm-ups and statistics; by default nothing.

        Args:
            epoch: Number of finished epochs.
            progress: Finished fraction of the training, in [0, 1].
        """

    def begin_step(self, number: int) -> None:
        """Prepare step `number` of `steps_per_batch`, from 0; by default nothing."""

    def after_backward(self, model: Classifier) -> None:
        """Undo changes of `forward` to the weights; by default nothing."""
