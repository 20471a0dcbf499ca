"""Attacks of a single gradient: one family of noise, step and clip."""

from fractions import Fraction
from typing import Any, ClassVar

from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text
from lightning_paf.functional.geometry import Bounds, geometry_of
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius


class SingleStep(Attack):
    """Noise, one step along the gradient at the noisy image, and a clip: the family of all single-step attacks.

    FGSM has no noise; RS-FGSM has noise 1, a step of 1.25 `eps` and clip 1; N-FGSM has noise 2, a step of `eps` and no
    clip (de Jorge et al. 2022, section 4). Start and result are brought into `bounds` in all of them. The gradient is
    the attack's only one; in training one more forward and backward pass follow.

    Args:
        eps: Largest perturbation of the threat model, in units of pixels in [0, 1]: `8/255`, `0.031`.
        noise: Radius of the ball that the noise is drawn from, uniformly, in multiples of `eps`.
        step_size: Length of the step; null for `eps`.
        clip: Radius of the ball into which the result is brought, in multiples of `eps`; null for none, where a result
            may be as far from its image as noise and step together, which `radius` reports.
        norm: How a perturbation is measured.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.
        loss: What to increase where the call does not say it: `(output, target) -> (N,)`. Default: cross-entropy.

    Raises:
        ValueError: As for every attack; negative noise, or a step or clip that is not positive.
    """

    usual_step: ClassVar[float] = 1.0
    """The step where `step_size` is null, in multiples of `eps`."""

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        noise: float = 0.0,
        step_size: Radius | None = None,
        clip: float | None = 1.0,
        norm: Norm = "linf",
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
    ) -> None:
        super().__init__(eps, norm=norm, mode=mode, bounds=bounds, loss=loss)
        if not noise >= 0:
            raise ValueError(f"noise={noise} must not be negative. N-FGSM uses 2 (in multiples of eps).")
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size={step_size} must be positive. Leave it out for the usual {self._usual_text}.")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip={clip} must be positive. Pass 1 (in multiples of eps), or null for no clip.")
        self.noise = noise
        self.step_size = step_size
        self.clip = clip

    @property
    def radius(self) -> float:
        """The clip, or noise and step together."""
        eps = float(self.eps)
        return self.noise * eps + self.step if self.clip is None else self.clip * eps

    @property
    def step(self) -> float:
        """Length of the step, as a number."""
        return self.usual_step * float(self.eps) if self.step_size is None else float(self.step_size)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {
            "noise": self.noise,
            "step_size": self._usual_text if self.step_size is None else radius_text(self.step_size),
            "clip": self.clip,
            "radius": self.radius,
        }

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Noise, one step, clip."""
        ball, start = geometry_of(self.norm), x
        if self.noise:
            width = self.noise * float(self.eps)
            start = ball.move(x, ball.uniform(x, width), width, self.bounds)
        _, gradient = loss_and_gradient(forward, start, y, loss)
        step = self.step * ball.ascent(gradient, start, self.bounds)
        return ball.move(x, start - x + step, self.radius, self.bounds)

    @property
    def _usual_text(self) -> str:
        return "eps" if self.usual_step == 1 else f"{self.usual_step:g} eps"


class FGSM(SingleStep):
    """One step of length `eps` from the image (Goodfellow et al. 2015; for l2 and l1 its natural analogue).

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: How a perturbation is measured.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.
        loss: What to increase where the call does not say it: `(output, target) -> (N,)`. Default: cross-entropy.

    Raises:
        ValueError: As for every attack.
    """

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
    ) -> None:
        super().__init__(eps, norm=norm, mode=mode, bounds=bounds, loss=loss)


class RSFGSM(SingleStep):
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

    usual_step = 1.25

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        step_size: Radius | None = None,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
    ) -> None:
        super().__init__(eps, noise=1.0, step_size=step_size, mode=mode, bounds=bounds, loss=loss)


class NFGSM(SingleStep):
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
        super().__init__(eps, noise=noise, step_size=step_size, clip=None, mode=mode, bounds=bounds, loss=loss)
