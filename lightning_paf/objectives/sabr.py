"""Certified training on boxes around adversarial images (Müller et al., 2023)."""

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.bounds.region import Box, Region
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.checks import checked
from lightning_paf.objectives.ibp import IBP


class SABR(IBP):
    """Interval bounds on a small box with an adversarial image, in the linf ball.

    Müller, Eckert, Fischer, Vechev, "Certified Training: Small Boxes are All You Need", ICLR 2023. The loss is not a
    bound on the whole ball; a tighter method such as CROWN certifies the trained network.

    Args:
        clean_weight: As in `Certified`; 0 in the paper.
        fraction: Radius of the box as a fraction of the attack's radius, in (0, 1]; 1 trains like `IBP`.

    Raises:
        ValueError: A number out of range. In the first step: the norm of the attack is not linf.
    """

    def __init__(self, clean_weight: float = 0.0, fraction: float = 0.4) -> None:
        super().__init__(clean_weight)
        self.fraction = checked("fraction", fraction, 0 < fraction <= 1, "in (0, 1]", 0.4)

    def region(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Region:
        """Small box around an adversarial image, moved into the ball."""
        if attack.norm != "linf":
            raise ValueError(f"norm must be linf for SABR, got {attack.norm!r}. Pass --model.attack.norm linf.")
        radius = self.fraction * attack.radius
        rest = attack.radius - radius
        adversarial = attack(model, x, y) if rest > 0 else x
        centre = torch.clamp(adversarial, x - rest, x + rest)
        return Box((centre - radius).clamp(0, 1), (centre + radius).clamp(0, 1))
