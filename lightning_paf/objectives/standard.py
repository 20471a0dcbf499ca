"""Training on clean images, and on adversarial images."""

from typing import Literal

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked_smoothing


class Natural(Objective):
    """Cross-entropy on clean images; the attack is not used.

    Args:
        label_smoothing: Fraction of the target that is spread evenly over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = checked_smoothing(label_smoothing)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cross-entropy of the clean batch."""
        logits = model(x)
        return StepResult(cross_entropy(logits, y, label_smoothing=self.label_smoothing).mean(), logits)


class AdversarialCE(Objective):
    """Adversarial training: cross-entropy on adversarial images (Madry et al., 2018).

    With PGD this is PGD-AT, with the FGSM family it is fast adversarial training.

    Args:
        bn_statistics: Images that update the running statistics of BatchNorm. `mixed` also passes the clean batch
            through the network in training mode, without a graph, as the code of Dai et al. (2021) does; the running
            statistics are then half clean, half adversarial, while the gradient uses those of the adversarial batch.
            `adversarial` saves that forward pass.
        label_smoothing: Fraction of the target that is spread evenly over all classes.
    """

    def __init__(self, bn_statistics: Literal["mixed", "adversarial"] = "mixed", label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.bn_statistics = bn_statistics
        self.label_smoothing = checked_smoothing(label_smoothing)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cross-entropy of the adversarial batch."""
        clean: Tensor | None = None
        if self.bn_statistics == "mixed":
            with torch.no_grad():
                clean = model(x)
        logits = model(self.images(model, x, y, attack))
        loss = cross_entropy(logits, y, label_smoothing=self.label_smoothing).mean()
        return StepResult(loss, logits, clean_logits=clean)

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Images (N, C, H, W) to train on: the adversarial images of `x`."""
        return attack(model, x, y)
