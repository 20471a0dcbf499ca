"""Attack of denoisers that keeps the mean of a noisy image."""

import math
from fractions import Fraction
from typing import Any, Self

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text, unless_infinite
from lightning_paf.functional.geometry import geometry_of, per_example
from lightning_paf.types import Forward, PerExampleLoss, Radius


class ZeroMeanPGD(Attack):
    """PGD on perturbations of mean zero in an l2 ball: ObsAtk (Yan et al. 2022).

    `x` is the noisy observation of an image, and `y` the clean image, for `loss=squared_distance`, or what else
    the loss compares with. Each step follows the gradient scaled to length 1. The perturbation is then clipped to
    the pixel range, projected onto mean zero over all pixels and channels, and shrunk to the ball, which keeps the
    mean. Without clipping this is the exact projection onto ball and hyperplane. A last clipping can leave a small mean
    where pixels are at the end of their range. There is no random start.

    Yan, Zhang, Feng, Sugiyama, Tan, "Towards Adversarially Robust Deep Image Denoising", IJCAI 2022.

    Args:
        eps: Largest l2 length of the perturbation: 250/255 is 5/255 per pixel of a grey image of 50 x 50 pixels. See
            `at_level` for images of other sizes.
        step_size: Length of a step; null for `eps` if there is one step, otherwise `1.5 eps / steps`.
        steps: Number of gradients; 1 in the paper's training, 5 in its evaluation.
        **options: Further options of `Attack`, except `norm`.

    Raises:
        ValueError: `steps` is below 1, or `step_size` is not positive; see also `Attack`.
    """

    settings = ("step_size", "steps")

    def __init__(
        self, eps: Radius = Fraction(250, 255), *, step_size: Radius | None = None, steps: int = 5, **options: Any
    ) -> None:
        super().__init__(eps, norm="l2", **options)
        self.step_size, self.steps = step_size, steps
        self.require(steps=1)
        if step_size is not None:
            self.require_length("step_size")

    @classmethod
    def at_level(cls, level: Radius, image: Tensor, steps: int) -> Self:
        """The attack on images of one shape whose radius is a noise level.

        Args:
            level: Largest root mean square of the perturbation, in units of pixels in [0, 1].
            image: An image (C, H, W) of this shape.
            steps: Number of gradients.
        """
        attack = cls(level, steps=steps)
        attack.eps = float(level) * math.sqrt(image.numel())  # can exceed the limit for images of the usual sizes
        return attack

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        step = "min(1, 1.5 / steps) eps" if self.step_size is None else radius_text(self.step_size)
        return super().describe() | {"step_size": step}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run `steps` steps from the observation."""
        ball = geometry_of("l2")
        step_size = min(1.0, 1.5 / self.steps) * self.radius if self.step_size is None else float(self.step_size)
        delta = torch.zeros_like(x)
        for _ in range(self.steps):
            values, gradient = loss_and_gradient(forward, x + delta, y, loss)
            delta = delta + step_size * unless_infinite(values, ball.ascent(gradient, x, self.bounds))
            inside = delta if self.bounds is None else (x + delta).clamp(*self.bounds) - x
            delta = ball.project(without_mean(inside), ball.fraction_of_radius * self.radius)
        moved = x + delta
        return moved if self.bounds is None else moved.clamp(*self.bounds)


def without_mean(delta: Tensor) -> Tensor:
    """Project perturbations (N, C, H, W) onto mean zero over all pixels and channels."""
    return delta - per_example(delta.flatten(1).mean(1), delta)
