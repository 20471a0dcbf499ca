"""Single-step attacks."""

from fractions import Fraction
from typing import Any, ClassVar

from torch import Tensor

from lightning_paf.attacks.base import Attack, loss_and_gradient, radius_text
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.types import Forward, PerExampleLoss, Radius


class SingleStep(Attack):
    """Noise, one step along the gradient at the noisy image, and a clip.

    FGSM has no noise; RS-FGSM has noise 1, a step of 1.25 `eps` and clip 1; N-FGSM has noise 2, a step of `eps` and no
    clip (de Jorge et al. 2022, section 4). All clamp start and result to `bounds`.

    Args:
        eps: Largest perturbation of the threat model, in units of pixels in [0, 1]: `8/255`, `0.031`.
        noise: Radius of the ball of the uniform noise, in multiples of `eps`.
        step_size: Length of the step; null for `eps`.
        clip: Radius of the ball onto which the result is projected, in multiples of `eps`; null for no projection,
            where `radius` is the sum of noise and step.
        **options: Further options of `Attack`.

    Raises:
        ValueError: `noise` is negative, or `step_size` or `clip` is not positive; see also `Attack`.
    """

    settings = ("noise", "step_size", "clip", "radius")
    usual_step: ClassVar[float] = 1.0
    """The step where `step_size` is null, in multiples of `eps`."""

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        noise: float = 0.0,
        step_size: Radius | None = None,
        clip: float | None = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(eps, **options)
        self.noise, self.step_size, self.clip = noise, step_size, clip
        self.require(noise=0)
        self.require_positive("clip")
        if step_size is not None:
            self.require_length("step_size")

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
        usual = "eps" if self.usual_step == 1 else f"{self.usual_step:g} eps"
        return super().describe() | {"step_size": usual if self.step_size is None else radius_text(self.step_size)}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Noise, one step, clip."""
        ball, start = geometry_of(self.norm), x
        if self.noise:
            width = self.noise * float(self.eps)
            start = ball.move(x, ball.uniform(x, width), width, self.bounds)
        _, gradient = loss_and_gradient(forward, start, y, loss)
        step = self.step * ball.ascent(gradient, start, self.bounds)
        return ball.move(x, start - x + step, self.radius, self.bounds)


class FGSM(SingleStep):
    """FGSM: one step of length `eps` from the image (Goodfellow et al. 2015).

    In l2 and l1 the step follows the direction of steepest ascent.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        **options: Further options of `Attack`.

    Raises:
        ValueError: See `Attack`.
    """

    def __init__(self, eps: Radius = Fraction(8, 255), **options: Any) -> None:
        super().__init__(eps, noise=0.0, step_size=None, clip=1.0, **options)


class RSFGSM(SingleStep):
    """RS-FGSM: one signed step from a uniform start (Wong et al. 2020).

    The attack of "fast" adversarial training. The result is projected onto the l-infinity ball.

    Args:
        eps: Largest change of a pixel in [0, 1]: `8/255`, `0.031`.
        step_size: Length of the step; null for the paper's `1.25 eps`.
        **options: Further options of `Attack`, except `norm`.

    Raises:
        ValueError: `step_size` is not positive; see also `Attack`.
    """

    usual_step = 1.25

    def __init__(self, eps: Radius = Fraction(8, 255), *, step_size: Radius | None = None, **options: Any) -> None:
        super().__init__(eps, noise=1.0, step_size=step_size, clip=1.0, norm="linf", **options)


class NFGSM(SingleStep):
    """N-FGSM: one signed step from strong noise (de Jorge et al. 2022).

    The result is not projected onto the eps-ball.

    Training with the noise as an augmentation avoids catastrophic overfitting. A result is up to
    `noise * eps + step_size` from its image, which is its `radius`.

    Args:
        eps: The threat model's largest change of a pixel in [0, 1]: `8/255`, `0.031`.
        noise: Half width of the uniform noise, in multiples of `eps`; 2 in the paper.
        step_size: Length of the step; null for the paper's `eps`.
        **options: Further options of `Attack`, except `norm`.

    Raises:
        ValueError: `noise` is negative, or `step_size` is not positive; see also `Attack`.
    """

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        noise: float = 2.0,
        step_size: Radius | None = None,
        **options: Any,
    ) -> None:
        super().__init__(eps, noise=noise, step_size=step_size, clip=None, norm="linf", **options)
