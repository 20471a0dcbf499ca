"""Attacks of a single gradient."""

from fractions import Fraction
from typing import Any

from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text
from lightning_paf.functional.geometry import Bounds, geometry_of
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, PerExampleLoss, Radius


class FGSM(Attack):
    """One step of length `eps` from the image (Goodfellow et al. 2015; for l2 and l1 its natural analogue).

    Takes the arguments of every attack.
    """

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Step to the boundary of the ball."""
        ball = geometry_of(self.norm)
        _, gradient = loss_and_gradient(forward, x, y, loss)
        return ball.move(x, self.radius * ball.ascent(gradient, x, self.bounds), self.radius, self.bounds)


class RSFGSM(Attack):
    """One signed step from a uniform start, projected onto the l-infinity ball (Wong et al. 2020, "fast" training).

    Args:
        eps: Largest change of a pixel in [0, 1]: `8/255`, `0.031`.
        step_size: Length of the step; null for the paper's `1.25 eps`.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.
        loss: What to increase where the call does not say it: `(output, target) -> (N,)`. Default: cross-entropy.

    Raises:
        ValueError: As for every attack; a step size that is not positive.
    """

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        step_size: Radius | None = None,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
    ) -> None:
        super().__init__(eps, norm="linf", mode=mode, bounds=bounds, loss=loss)
        _check_step(step_size, "1.25 eps")
        self.step_size = step_size

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"step_size": _step_text(self.step_size, "1.25 eps")}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Noise, one step, projection."""
        ball = geometry_of(self.norm)
        step_size = 1.25 * self.radius if self.step_size is None else float(self.step_size)
        start = ball.move(x, ball.uniform(x, self.radius), self.radius, self.bounds)
        _, gradient = loss_and_gradient(forward, start, y, loss)
        return ball.move(x, start - x + step_size * gradient.sign(), self.radius, self.bounds)


class NFGSM(Attack):
    """N-FGSM: one signed step from strong noise, without a projection onto the eps-ball (de Jorge et al. 2022).

    The noise is part of the augmentation there, and training with it does not overfit to the single step. A result is
    therefore up to `noise * eps + step_size` from its image, which `radius` reports.

    Args:
        eps: The threat model's largest change of a pixel in [0, 1]: `8/255`, `0.031`.
        noise: Half width of the uniform noise, in multiples of `eps`; 2 in the paper.
        step_size: Length of the step; null for the paper's `eps`.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.
        loss: What to increase where the call does not say it: `(output, target) -> (N,)`. Default: cross-entropy.

    Raises:
        ValueError: As for every attack; negative noise or a step size that is not positive.
    """

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        noise: float = 2.0,
        step_size: Radius | None = None,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
    ) -> None:
        super().__init__(eps, norm="linf", mode=mode, bounds=bounds, loss=loss)
        if not noise >= 0:
            raise ValueError(f"noise={noise} must not be negative. The paper uses 2 (in multiples of eps).")
        _check_step(step_size, "eps")
        self.noise = noise
        self.step_size = step_size

    @property
    def radius(self) -> float:
        """Noise and step together."""
        return self.noise * float(self.eps) + self._step

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {
            "noise": self.noise,
            "step_size": _step_text(self.step_size, "eps"),
            "radius": self.radius,
        }

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Noise, one step, clamp to the pixel range."""
        ball, noise = geometry_of(self.norm), self.noise * float(self.eps)
        start = ball.move(x, ball.uniform(x, noise), noise, self.bounds)
        _, gradient = loss_and_gradient(forward, start, y, loss)
        return ball.move(x, start - x + self._step * gradient.sign(), self.radius, self.bounds)

    @property
    def _step(self) -> float:
        return float(self.eps if self.step_size is None else self.step_size)


def _check_step(step_size: Radius | None, usual: str) -> None:
    if step_size is not None and not step_size > 0:
        raise ValueError(f"step_size={step_size} must be positive. Leave it out for the usual {usual}.")


def _step_text(step_size: Radius | None, default: str) -> str:
    return default if step_size is None else radius_text(step_size)
