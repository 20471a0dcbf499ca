"""Momentum iterative FGSM."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text, unless_infinite
from lightning_paf.functional.geometry import Bounds, geometry_of
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, PerExampleLoss, Radius


class MIFGSM(Attack):
    """Signed steps along a decaying sum of normalised gradients (Dong et al. 2018), whose results transfer better.

    Every gradient is divided by its mean absolute value. (The paper divides by the l1 norm, its code by the mean; the
    factor between them is the same at every step, so the signs are the same.) With no momentum and one step it is FGSM.

    Args:
        eps: Largest change of a pixel in [0, 1]: `16/255` in the paper.
        step_size: Length of a step; null for `eps / steps`.
        steps: Number of gradients.
        momentum: Share of the sum that a step keeps.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.
        loss: What to increase where the call does not say it: `(output, target) -> (N,)`. Default: cross-entropy.

    Raises:
        ValueError: As for every attack; no step, a step size that is not positive, or a negative momentum.
    """

    def __init__(
        self,
        eps: Radius = Fraction(16, 255),
        *,
        step_size: Radius | None = None,
        steps: int = 10,
        momentum: float = 1.0,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
    ) -> None:
        super().__init__(eps, mode=mode, bounds=bounds, loss=loss)
        if steps < 1:
            raise ValueError(f"steps={steps} makes no attack. Give at least 1.")
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size={step_size} must be positive. Leave it out for the usual eps / steps.")
        if not momentum >= 0:
            raise ValueError(f"momentum={momentum} must not be negative. The paper uses 1.")
        self.step_size = step_size
        self.steps = steps
        self.momentum = momentum

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        step = "eps / steps" if self.step_size is None else radius_text(self.step_size)
        return super().describe() | {"step_size": step, "steps": self.steps, "momentum": self.momentum}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run `steps` steps from the image."""
        step_size = self.radius / self.steps if self.step_size is None else float(self.step_size)
        back, x_adv, direction = geometry_of("linf").returns(x, self.radius, self.bounds), x, torch.zeros_like(x)
        for _ in range(self.steps):
            values, gradient = loss_and_gradient(forward, x_adv, y, loss)
            mean = gradient.flatten(1).abs().mean(1).clamp_min(torch.finfo(x.dtype).tiny)
            direction = self.momentum * direction + gradient / mean.view(-1, *[1] * (x.dim() - 1))
            x_adv = back(x_adv + step_size * unless_infinite(values, direction.sign()))
        return x_adv
