"""The basic iterative method."""

import math
from fractions import Fraction

from lightning_paf.attacks.pgd import PGD
from lightning_paf.functional.geometry import Bounds
from lightning_paf.nn.modes import Mode
from lightning_paf.types import PerExampleLoss, Radius


class BIM(PGD):
    """I-FGSM: signed steps of one grey level from the image itself (Kurakin, Goodfellow & Bengio 2017).

    Args:
        eps: Largest change of a pixel in [0, 1]: `8/255`, `0.031`.
        step_size: Length of a step.
        steps: Number of gradients; null for the paper's `min(eps + 4, 1.25 eps)` with `eps` in grey levels, rounded up.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.
        loss: What to increase where the call does not say it: `(output, target) -> (N,)`. Default: cross-entropy.

    Raises:
        ValueError: As for every attack; no step, or a step size that is not positive.
    """

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        step_size: Radius = Fraction(1, 255),
        steps: int | None = None,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        loss: PerExampleLoss | None = None,
    ) -> None:
        steps = grey_level_steps(eps) if steps is None else steps
        super().__init__(eps, step_size=step_size, steps=steps, start="none", mode=mode, bounds=bounds, loss=loss)


def grey_level_steps(eps: Radius) -> int:
    """How many steps of one grey level the paper takes."""
    levels = 255 * float(eps)
    return math.ceil(round(min(levels + 4, 1.25 * levels), 6))  # 8/255 in floating point is a little more than 8 levels
