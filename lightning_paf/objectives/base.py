"""What every training objective looks like."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier


@dataclass(frozen=True)
class StepResult:
    """What one training step computed.

    Attributes:
        loss: Scalar, with its graph.
        logits: (N, num_classes) on what the network was trained on, for the training accuracy.
        logs: Further scalars to log, by name.
        clean_logits: (N, num_classes) on the clean images, where the objective needs them anyway.
    """

    loss: Tensor
    logits: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    clean_logits: Tensor | None = None


class Objective(nn.Module, ABC):
    """The loss of the outer minimisation, with any state that it needs.

    It is a module, so that optimiser, checkpoint, DDP and weight averaging see its parameters with no extra code. Two
    laws, tested over all subclasses: every trainable parameter gets a gradient at every step (otherwise DDP stops), and
    no tensor with a graph is kept between steps (weight averaging copies the module).
    """

    needs_double_backward: bool = False
    """Whether it differentiates a gradient, which fused attention and compiled networks cannot."""

    steps_per_batch: int = 1
    """Optimiser steps that each batch is used for; before each of them `begin_step` is called and then `forward`."""

    def bind(self, model: Classifier) -> None:
        """Build heads once the number of features is known; by default nothing."""

    @abstractmethod
    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Compute the loss of one batch.

        Args:
            model: The classifier that is trained, in training mode.
            x: Images (N, C, H, W) in [0, 1].
            y: Labels (N,), or a distribution over the classes (N, num_classes) where the data mix or smooth them;
                `functional.losses.hard_labels` makes labels of both.
            attack: The inner maximisation.
        """

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Warm-ups and refits; by default nothing.

        Args:
            epoch: Number of finished epochs.
            progress: Share of the training that is over, in [0, 1].
        """

    def begin_step(self, number: int) -> None:
        """Learn which of the `steps_per_batch` follows, from 0; by default nothing."""

    def after_backward(self, model: Classifier) -> None:
        """Take back what `forward` did to the weights for the sake of the gradient; by default nothing."""
