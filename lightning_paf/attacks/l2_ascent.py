"""The l2 attack of TRADES."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text, unless_infinite
from lightning_paf.functional.geometry import geometry_of, per_example
from lightning_paf.types import Forward, PerExampleLoss, Radius

_START_STD = 0.001


class L2Ascent(Attack):
    """Gradient ascent in l2 from the code of TRADES (Zhang et al. 2019).

    Each iterate is projected onto the pixel range first, then onto the ball.

    From a Gaussian start of standard deviation 0.001, each step follows the gradient scaled to length 1. Where the
    gradient is zero, it follows Gaussian noise of standard deviation 1, not scaled. Shrinking towards the image keeps
    pixels in their range, so the result lies in both sets. PGD in l2 projects in the opposite order.

    Args:
        eps: Largest l2 length of the perturbation: `128/255`, `0.5`.
        step_size: Length of a step; null for `2 eps / steps`.
        steps: Number of gradients.
        **options: Further options of `Attack`, except `norm`.

    Raises:
        ValueError: `steps` is below 1, or `step_size` is not positive; see also `Attack`.
    """

    settings = ("step_size", "steps")

    def __init__(
        self,
        eps: Radius = Fraction(128, 255),
        *,
        step_size: Radius | None = None,
        steps: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(eps, norm="l2", **options)
        self.step_size, self.steps = step_size, steps
        self.require(steps=1)
        if step_size is not None:
            self.require_length("step_size")

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        step = "2 eps / steps" if self.step_size is None else radius_text(self.step_size)
        return super().describe() | {"step_size": step}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run `steps` steps from the start."""
        ball = geometry_of("l2")
        step_size = 2 * self.radius / self.steps if self.step_size is None else float(self.step_size)
        delta = _START_STD * torch.randn_like(x)
        for _ in range(self.steps):
            values, gradient = loss_and_gradient(forward, x + delta, y, loss)
            flat = per_example((gradient == 0).flatten(1).all(1), x)
            direction = torch.where(flat, torch.randn_like(x), ball.ascent(gradient, x, self.bounds))
            delta = delta + step_size * unless_infinite(values, direction)
            inside = delta if self.bounds is None else (x + delta).clamp(*self.bounds) - x
            delta = ball.project(inside, ball.fraction_of_radius * self.radius)
        moved = x + delta
        return moved if self.bounds is None else moved.clamp(*self.bounds)  # rounding of the sum
