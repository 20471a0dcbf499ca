"""Squared error to centred one-hot targets, on clean and on adversarial images."""

from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import squared_error
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult


class SquaredError(Objective):
    """Half the squared distance of the logits to one-hot minus 1/C; no attack.

    For kernel regression (`KIP`), and for networks that are to approximate it.
    """

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean squared error of the batch."""
        logits = model(self.images(model, x, y, attack))
        return StepResult(squared_error(logits, y).mean(), logits)

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Images (N, C, H, W) to train on: `x` itself."""
        return x


class AdversarialSquaredError(SquaredError):
    """Squared error on adversarial images, which maximise it: adv-KIP.

    Tsilivis, Su, Kempe, "Can we achieve robustness from data alone?", 2022.
    """

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Adversarial images of `x`, without a graph."""
        return attack(model, x, y, loss=squared_error)
