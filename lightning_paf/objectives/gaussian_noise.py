"""Training on images with Gaussian noise, for classifiers that are smoothed (Cohen, Rosenfeld, Kolter, 2019)."""

import math

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult


class NoisyCE(Objective):
    """Cross-entropy on images plus Gaussian noise, which is not clipped to the pixel range; the attack is not used.

    The network is to be smoothed with noise of the same size afterwards (`lightning-paf certify`); by itself it is no
    defence that could be believed. Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized
    Smoothing", ICML 2019, section 3.3.

    Args:
        std: Standard deviation of the noise in each pixel, in units of pixels in [0, 1]; 0 is `Natural`,
            bit for bit.

    Raises:
        ValueError: A negative or infinite standard deviation.
    """

    def __init__(self, std: float = 0.25) -> None:
        super().__init__()
        if not 0 <= std < math.inf:
            raise ValueError(f"std must be a standard deviation, >= 0, got {std}. Pass --model.objective.std 0.25.")
        self.std = std

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cross-entropy of the noisy batch."""
        del attack
        noisy = x + self.std * torch.randn_like(x) if self.std else x  # 0 leaves the generators to the augmentation
        logits = model(noisy)
        return StepResult(cross_entropy(logits, y).mean(), logits)


def training_noise(objective: Objective) -> float:
    """Standard deviation of the noise that an objective, or one inside it, trains with; 0 for those without."""
    return max((part.std for part in objective.modules() if isinstance(part, NoisyCE)), default=0.0)
