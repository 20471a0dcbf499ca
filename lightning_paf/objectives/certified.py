"""The common part of certified training."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import hard_labels
from lightning_paf.nn.bounds.network import Network
from lightning_paf.nn.bounds.propagation import margin_weights
from lightning_paf.nn.bounds.region import Region, region_of
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked

_SMALLEST = 1e-9
"""Radius at the start of a schedule from 0."""


class Certified(Objective):
    """Cross-entropy of the worst logits that bounds allow, plus that of clean images.

    The worst logits of an image are those with the smallest margins of its label, from lower bounds of the margins on
    the norm ball of the attack. `RadiusSchedule` increases the radius from 0 during the training. Bounds use running
    statistics of batch normalisation, and no autocast.

    Args:
        clean_weight: Weight of the clean cross-entropy, in [0, 1]; the other one has the rest of the weight. It is 1 at
            the beginning and reaches this value at half of the training, since an early bound is loose and would make
            the network constant.

    Raises:
        ValueError: The weight is out of range. In the first step: a layer has no bounds, or the norm is l1.
    """

    def __init__(self, clean_weight: float = 0.3) -> None:
        super().__init__()
        self.clean_weight = checked("clean_weight", clean_weight, 0 <= clean_weight <= 1, "in [0, 1]", 0.3)
        self.weight = self.clean_weight

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Update the weight of the clean cross-entropy."""
        self.weight = 1 - (1 - self.clean_weight) * min(1.0, 2 * progress)

    @abstractmethod
    def margins(self, network: Network, region: Region, weights: Tensor) -> Tensor:
        """Lower bounds of weighted sums of logits, differentiable by parameters.

        Args:
            network: The classifier.
            region: Set of images around each of N images.
            weights: (K, N, classes).

        Returns:
            (K, N), float64.
        """

    def region(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Region:
        """Set of images for the bounds; here the norm ball of the attack."""
        del model, y
        return region_of(attack.norm, x, max(attack.radius, _SMALLEST))

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Weighted mean of both losses."""
        labels, logits = hard_labels(y), model(x)
        with torch.autocast(x.device.type, enabled=False):
            region = self.region(model, x, labels, attack)
            margins = self.margins(Network(model, x[:1]), region, margin_weights(labels, logits.shape[1], x))
            certified = softplus(torch.logsumexp(-margins, 0)).mean().to(logits.dtype)
        clean = cross_entropy(logits, y)
        logs = {"natural_loss": clean, "certified_loss": certified, "certified": (margins > 0).all(0).float().mean()}
        return StepResult(self.weight * clean + (1 - self.weight) * certified, logits, logs, logits)
