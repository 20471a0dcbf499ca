"""Training on clean images, and on the adversarial images of an attack."""

from typing import Literal

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult


class Natural(Objective):
    """Cross-entropy on clean images; the attack is not used.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = checked_smoothing(label_smoothing)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cross-entropy of the clean batch."""
        del attack
        logits = model(x)
        return StepResult(cross_entropy(logits, y, label_smoothing=self.label_smoothing).mean(), logits)


class AdversarialCE(Objective):
    """Adversarial training: cross-entropy on the images that the attack found (Madry et al., 2018).

    With PGD this is PGD-AT, with the FGSM family it is fast adversarial training.

    Args:
        bn_statistics: Which images move the running statistics of BatchNorm. `mixed` also passes the clean batch
            through the network in training mode, without a graph, as the code of Dai et al. (2021) does; the running
            statistics are then half clean, half adversarial, while the gradient uses those of the adversarial batch.
            `adversarial` saves that forward pass.
        label_smoothing: Share of the target that is spread evenly over all classes.
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
        """The images (N, C, H, W) that the network is trained on: what the attack makes of `x`."""
        return attack(model, x, y)


def checked_smoothing(label_smoothing: float) -> float:
    """The same number, if it is a share."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be a fraction in [0, 1), got {label_smoothing}. Pass e.g. 0.1.")
    return label_smoothing
