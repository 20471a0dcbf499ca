"""Projected gradient descent."""

import warnings
from fractions import Fraction
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack, Best, loss_and_gradient, loss_at, radius_text
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.types import Forward, PerExampleLoss, Radius

Start = Literal["uniform", "gaussian", "none"]

_GAUSSIAN_STD = 0.001  # as in TRADES


class PGD(Attack):
    """Projected gradient descent: steepest ascent on the loss (Madry et al. 2018).

    The defaults are those of Dai et al. 2021, except for the start, which they do not clamp to the pixel range
    (`clamp_start=False`). In l2 they start on the sphere; this attack starts in the ball, which for images differs by a
    few thousandths of the radius. For l1, see `functional.geometry.L1`. The projection onto ball and pixel range
    together is exact for linf only.

    BIM (Kurakin et al. 2017) is `start=none, step_size=1/255`, with `min(eps + 4, 1.25 eps)` steps, `eps` in grey
    levels, rounded up.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        step_size: Length of a step, measured like `eps`.
        steps: Number of gradients.
        start: `uniform` in the ball, `gaussian` with standard deviation 0.001 (TRADES), or `none` (the image itself).
        clamp_start: Clamp the starting point to `bounds` before the first gradient.
        best: Return the iterate with the largest loss of each example (one more forward pass), not the last one.
        **options: Further options of `Attack`.

    Raises:
        ValueError: `steps` is below 1, `step_size` is not positive, or `start` is unknown; see also `Attack`.
    """

    settings: ClassVar[tuple[str, ...]] = ("step_size", "steps", "start", "clamp_start", "best")

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        step_size: Radius = Fraction(2, 255),
        steps: int = 10,
        start: Start = "uniform",
        clamp_start: bool = True,
        best: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(eps, **options)
        self.step_size, self.steps = step_size, steps
        self.start, self.clamp_start, self.best = start, clamp_start, best
        self.require(steps=1)
        self.require_length("step_size")
        if start not in ("uniform", "gaussian", "none"):
            raise ValueError(f"start must be uniform, gaussian or none, got {start!r}. Pass one of these.")
        if steps * float(step_size) < float(eps):
            warnings.warn(
                f"{type(self).__name__} cannot cross the ball: {steps} steps of {radius_text(step_size)} are shorter "
                f"than eps={radius_text(eps)}. Raise steps or step_size.",
                stacklevel=2,
            )
        if 0 < 2 * float(eps) < float(step_size):
            warnings.warn(
                f"{type(self).__name__}: steps of {radius_text(step_size)} are longer than the diameter of the ball, "
                f"2 * {radius_text(eps)}. Lower step_size, such as to eps / 4.",
                stacklevel=2,
            )

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"step_size": radius_text(self.step_size)}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run `steps` steps from the start."""
        ball, step_size = geometry_of(self.norm), float(self.step_size)
        x_adv = self._starting_point(x)
        back = ball.returns(x, self.radius, self.bounds)
        best = Best(x)
        for step in range(self.steps):
            values, gradient = loss_and_gradient(forward, x_adv, y, loss)
            if self.best and (step > 0 or self.clamp_start):  # an unclamped start is no valid image
                best.update(x_adv, values)
            x_adv = back(torch.add(x_adv, ball.ascent(gradient, x_adv, self.bounds), alpha=step_size))
        if not self.best:
            return x_adv
        best.update(x_adv, loss_at(forward, x_adv, y, loss))
        return best.x

    def _starting_point(self, x: Tensor) -> Tensor:
        if self.start == "none":
            return x
        ball = geometry_of(self.norm)
        noise = ball.uniform(x, self.radius) if self.start == "uniform" else _GAUSSIAN_STD * torch.randn_like(x)
        return ball.move(x, noise, self.radius, self.bounds if self.clamp_start else None)
