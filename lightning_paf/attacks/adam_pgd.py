"""Projected gradient descent with Adam."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient, unless_infinite
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.types import Forward, PerExampleLoss, Radius

_BETAS = (0.9, 0.999)
_SMALL = 1e-9


class AdamPGD(Attack):
    """PGD with Adam steps from a uniform start (Gowal et al. 2020, 2021).

    The decays are 0.9 and 0.999, the constant is 1e-9; the learning rate drops once. A projection follows each step.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        steps: Number of gradients.
        lr: Learning rate of Adam, in units of pixels.
        drop_at: Number of steps after which the learning rate is divided by 10.
        **options: Further options of `Attack`.

    Raises:
        ValueError: `steps` is below 1, or the learning rate is not positive; see also `Attack`.
    """

    settings = ("steps", "lr", "drop_at")

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        steps: int = 10,
        lr: float = 0.1,
        drop_at: int = 5,
        **options: Any,
    ) -> None:
        super().__init__(eps, **options)
        self.steps, self.lr, self.drop_at = steps, lr, drop_at
        self.require(steps=1)
        self.require_positive("lr")

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run `steps` steps from the start."""
        ball = geometry_of(self.norm)
        back = ball.returns(x, self.radius, self.bounds)
        x_adv = ball.move(x, ball.uniform(x, self.radius), self.radius, self.bounds)
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        for step in range(self.steps):
            values, gradient = loss_and_gradient(forward, x_adv, y, loss)
            mean = torch.lerp(gradient, mean, _BETAS[0])
            square = torch.lerp(gradient.square(), square, _BETAS[1])
            corrected = (mean / (1 - _BETAS[0] ** (step + 1)), square / (1 - _BETAS[1] ** (step + 1)))
            rate = self.lr if step < self.drop_at else self.lr / 10
            change = rate * corrected[0] / (corrected[1].sqrt() + _SMALL)
            x_adv = back(x_adv + unless_infinite(values, change))
        return x_adv
