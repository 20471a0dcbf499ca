"""The attack on the least likely class."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text
from lightning_paf.attacks.catalogue.bim import grey_level_steps
from lightning_paf.functional.geometry import Bounds, geometry_of
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, PerExampleLoss, Radius


class ILCM(Attack):
    """Signed steps towards the class that is least likely for the clean image (Kurakin et al. 2017).

    A targeted attack: it is weaker than an untargeted one, and what it finds is wrong in a striking way. Labels play no
    role.

    Args:
        eps: Largest change of a pixel in [0, 1]: `8/255`, `0.031`.
        step_size: Length of a step.
        steps: Number of gradients; null for the paper's, see `BIM`.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.

    Raises:
        ValueError: As for every attack; no step, or a step size that is not positive.
    """

    fixed_loss = True

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        step_size: Radius = Fraction(1, 255),
        steps: int | None = None,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(eps, mode=mode, bounds=bounds)
        if steps is not None and steps < 1:
            raise ValueError(f"steps={steps} makes no attack. Give at least 1, or null for the paper's number.")
        if not step_size > 0:
            raise ValueError(f"step_size={step_size} must be positive. Usual is 1/255.")
        self.step_size = step_size
        self.steps = grey_level_steps(eps) if steps is None else steps

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"step_size": radius_text(self.step_size), "steps": self.steps}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Descend the cross-entropy with the target."""
        del y, loss
        with torch.no_grad():
            target = forward(x).argmin(dim=1)
        back, x_adv = geometry_of("linf").returns(x, self.radius, self.bounds), x
        for _ in range(self.steps):
            _, gradient = loss_and_gradient(forward, x_adv, target, cross_entropy)
            x_adv = back(x_adv - float(self.step_size) * gradient.sign())
        return x_adv
