"""Training on clean images, and on adversarial images."""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_smoothing


class _CrossEntropy(Objective):
    """Cross-entropy with smoothed labels and a factor of each class."""

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float, class_weights: list[float] | None) -> None:
        super().__init__()
        self.label_smoothing = checked_smoothing(label_smoothing)
        valid = class_weights is None or all(0 < weight < math.inf for weight in class_weights)
        checked("class_weights", class_weights, valid, "positive and finite", "null")
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def bind(self, model: Classifier) -> None:
        """Check that each class has a weight."""
        if self.class_weights is not None and len(self.class_weights) != model.num_classes:
            raise ValueError(
                f"class_weights must be {model.num_classes} numbers, one for each class, got "
                f"{len(self.class_weights)}. Pass --model.objective.class_weights '[1, ...]' or null."
            )

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean over the batch, weighted by class."""
        return cross_entropy(logits, y, self.label_smoothing, self.class_weights).mean()


class Natural(_CrossEntropy):
    """Cross-entropy on clean images; the attack is not used.

    Args:
        label_smoothing: Fraction of the target that is spread evenly over all classes.
        class_weights: Factor of the loss of each class, for unequal numbers of images; null for 1.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: list[float] | None = None) -> None:
        super().__init__(label_smoothing, class_weights)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cross-entropy of the clean batch."""
        logits = model(x)
        return StepResult(self.loss(logits, y), logits)


class AdversarialCE(_CrossEntropy):
    """Adversarial training: cross-entropy on adversarial images (Madry et al., 2018).

    With PGD this is PGD-AT, with the FGSM family it is fast adversarial training.

    Args:
        bn_statistics: Images that update the running statistics of BatchNorm. `mixed` also passes the clean batch
            through the network in training mode, without a graph, as the code of Dai et al. (2021) does; the running
            statistics are then half clean, half adversarial, while the gradient uses those of the adversarial batch.
            `adversarial` saves that forward pass.
        label_smoothing: Fraction of the target that is spread evenly over all classes.
        class_weights: Factor of the loss of each class, for unequal numbers of images; null for 1.
    """

    def __init__(
        self,
        bn_statistics: Literal["mixed", "adversarial"] = "mixed",
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__(label_smoothing, class_weights)
        self.bn_statistics = bn_statistics

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cross-entropy of the adversarial batch."""
        clean: Tensor | None = None
        if self.bn_statistics == "mixed":
            with torch.no_grad():
                clean = model(x)
        logits = model(self.images(model, x, y, attack))
        return StepResult(self.loss(logits, y), logits, clean_logits=clean)

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Images (N, C, H, W) to train on: the adversarial images of `x`."""
        return attack(model, x, y)
