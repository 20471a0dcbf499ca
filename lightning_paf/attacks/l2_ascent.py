"""The l2 attack of TRADES."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text, unless_infinite
from lightning_paf.functional.geometry import Bounds, geometry_of
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, PerExampleLoss, Radius

_START_STD = 0.001


class L2Ascent(Attack):
    """Ascent in l2 with TRADES' order of projections: first into the pixel range, then into the ball.

    From a Gaussian start of standard deviation 0.001, each step follows the gradient scaled to length 1. Where the
    gradient of an image is zero it follows Gaussian noise instead, of standard deviation 1 and not scaled. Shrinking
    towards the image keeps pixels in their range, so the result lies in both sets. `PGD --norm l2` projects the other
    way round. As in the code of Zhang et al. (2019).

    Args:
        eps: Largest l2 length of the perturbation: `128/255`, `0.5`.
        step_size: Length of a step; null for theirs, `2 eps / steps`.
        steps: Number of gradients.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.
        loss: What to increase where the call does not say it: `(output, target) -> (N,)`. Default: cross-entropy.

    Raises:
        ValueError: As for every attack; no step, or a step size that is not positive.
    """

    def __init__(
        self,
        eps: Radius = Fraction(128, 255),
        *,
        step_size: Radius | None = None,
        steps: int = 10,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
    ) -> None:
        super().__init__(eps, norm="l2", mode=mode, bounds=bounds, loss=loss)
        if steps < 1:
            raise ValueError(f"steps={steps} makes no attack. Give at least 1.")
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size={step_size} must be positive. Leave it out for the usual 2 eps / steps.")
        self.step_size = step_size
        self.steps = steps

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        step = "2 eps / steps" if self.step_size is None else radius_text(self.step_size)
        return super().describe() | {"step_size": step, "steps": self.steps}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run `steps` steps from the start."""
        ball = geometry_of("l2")
        step_size = 2 * self.radius / self.steps if self.step_size is None else float(self.step_size)
        delta = _START_STD * torch.randn_like(x)
        for _ in range(self.steps):
            values, gradient = loss_and_gradient(forward, x + delta, y, loss)
            flat = (gradient == 0).flatten(1).all(1).view(-1, *[1] * (x.dim() - 1))
            direction = torch.where(flat, torch.randn_like(x), ball.ascent(gradient, x, self.bounds))
            delta = self._back(x, delta + step_size * unless_infinite(values, direction))
        moved = x + delta
        return moved if self.bounds is None else moved.clamp(*self.bounds)  # of a sum's last digit

    def _back(self, x: Tensor, delta: Tensor) -> Tensor:
        """Into the pixel range, then into the ball."""
        ball = geometry_of("l2")
        inside = delta if self.bounds is None else (x + delta).clamp(*self.bounds) - x
        return ball.project(inside, ball.share_of_radius * self.radius)
