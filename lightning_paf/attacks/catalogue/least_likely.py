"""The attack on the least likely class."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from lightning_paf.attacks.pgd import PGD
from lightning_paf.functional.geometry import Bounds
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, PerExampleLoss, Radius


class ILCM(PGD):
    """PGD towards the least likely class of the clean image (Kurakin et al. 2017).

    This targeted attack is weaker than an untargeted one. It does not use the labels.

    Args:
        eps: Largest change of a pixel in [0, 1]: `8/255`, `0.031`.
        step_size: Length of a step.
        steps: Number of gradients; null for the paper's `min(eps + 4, 1.25 eps)`, `eps` in grey levels, rounded up.
        mode: Mode of the attacked model: `eval`, or `train` with its buffers protected.
        bounds: Smallest and largest pixel value; null for unbounded inputs.

    Raises:
        ValueError: `steps` is below 1, or `step_size` is not positive; see also `Attack`.
    """

    fixed_loss = True
    settings = ("step_size", "steps")

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        step_size: Radius = Fraction(1, 255),
        steps: int | None = None,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        if steps is None:
            levels = 255 * min(1e3, float(eps))  # inf and NaN are refused below
            steps = math.ceil(round(min(levels + 4, 1.25 * levels), 6))  # 8/255 is a little more than 8 levels
        super().__init__(eps, step_size=step_size, steps=steps, start="none", mode=mode, bounds=bounds)

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Descend the cross-entropy with the target."""
        del y, loss
        with torch.no_grad():
            target = forward(x).argmin(dim=1)
        return super().perturb(forward, x, target, lambda logits, y: -cross_entropy(logits, y))
