"""Training with Gaussian noise, for randomised smoothing (Cohen et al., 2019)."""

import math

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked


class NoisyCE(Objective):
    """Cross-entropy on images with Gaussian noise, for smoothed classifiers.

    The noise is not clipped to the pixel range. The attack is not used.

    The network must be smoothed with noise of the same size afterwards (`lightning-paf certify`); without smoothing it
    is not a defence. Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019,
    section 3.3.

    Args:
        std: Standard deviation of the noise, >= 0, for pixels in [0, 1]; 0 is `Natural`, bit for bit.
    """

    def __init__(self, std: float = 0.25) -> None:
        super().__init__()
        self.std = checked("std", std, 0 <= std < math.inf, "finite and >= 0", 0.25)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cross-entropy of the noisy batch."""
        logits = model(x + self.std * torch.randn_like(x) if self.std else x)  # std 0 draws no random numbers
        return StepResult(cross_entropy(logits, y).mean(), logits)


def training_noise(objective: Objective) -> float:
    """Standard deviation of the training noise of an objective; 0 without noise."""
    return max((part.std for part in objective.modules() if isinstance(part, NoisyCE)), default=0.0)
