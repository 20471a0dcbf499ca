"""The fast minimum-norm attack."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from lightning_paf.attacks.base import loss_and_gradient
from lightning_paf.attacks.catalogue.minimal import MinimalAttack, Nearest
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import Bounds, geometry_of, per_example
from lightning_paf.functional.losses import margin
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, Norm, Radius

_LAST = 0.01  # the last step length, in multiples of the first
_LAST_GAMMA = 0.001
_PAST_TIE = 1e-4  # relative; a point on the boundary of a linear model would stay there


class FMN(MinimalAttack):
    """Fast minimum-norm attack (Pintor et al. 2021).

    "Fast minimum-norm adversarial attacks through adaptive norm constraints", arXiv:2102.12827.

    Every step follows the gradient of the margin, scaled to length 1 in l2, and is projected onto a ball of adaptive
    radius, then onto the pixel range. The radius shrinks by a factor at adversarial points, at most to the smallest
    distance so far, and grows by it at others. Before the first adversarial point, it is the linearised distance to the
    boundary. Step length and factor fall by a cosine schedule. The start is the image.

    Unlike in the authors' code, pixels at the ends of their range are left out of a step, which otherwise can stall
    before the boundary.

    Args:
        eps: Radius within which a result counts as adversarial.
        norm: Norm to minimise: `linf`, `l2` or `l1`.
        steps: Number of gradients.
        step_size: First l2 length of a step, in units of pixels.
        gamma: First relative change of the radius, in (0, 1).
        mode: Mode of the attacked model: `eval`, or `train` with its buffers protected.
        bounds: Smallest and largest pixel value; null for unbounded inputs.
        target: See `Attack`.

    Raises:
        ValueError: `steps` is below 1, `step_size` is not positive, or `gamma` is not in (0, 1); see also `Attack`.
    """

    settings = ("steps", "step_size", "gamma")

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        norm: Norm = "l2",
        steps: int = 100,
        step_size: float = 1.0,
        gamma: float = 0.05,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm=norm, mode=mode, bounds=bounds, target=target)
        self.steps, self.step_size, self.gamma = steps, step_size, gamma
        self.require(steps=1)
        self.require_positive("step_size")
        if not 0 < gamma < 1:
            raise ValueError(f"gamma must be in (0, 1), got {gamma}. Pass gamma=0.05.")

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest adversarial images and their distances."""
        nearest, rows = Nearest(x, self.norm), torch.arange(len(x), device=x.device)
        delta, eps = torch.zeros_like(x), torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        for step in range(self.steps + 1):
            points = x[rows] + delta if self.bounds is None else (x[rows] + delta).clamp(*self.bounds)
            values, gradient = loss_and_gradient(forward, points, y[rows], margin)
            gradient, adversarial = self._movable(points, gradient), values > 0
            nearest.update(rows, points, adversarial)
            if step == 0:  # images that are misclassified from the start have the distance 0
                keep = ~adversarial
                rows, delta, eps = rows[keep], delta[keep], eps[keep]
                values, gradient, adversarial = values[keep], gradient[keep], adversarial[keep]
            if step == self.steps or len(rows) == 0:
                break
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            length = self.step_size * (_LAST + (1 - _LAST) * cosine)
            gamma = _LAST_GAMMA + (self.gamma - _LAST_GAMMA) * cosine
            eps = self._radii(eps, gamma, nearest.distances[rows], adversarial, self._boundary(delta, values, gradient))
            delta = self._moved(x[rows], delta + length * geometry_of("l2").ascent(gradient, delta, None), eps)
        return nearest.x, nearest.distances

    def _movable(self, points: Tensor, gradient: Tensor) -> Tensor:
        """Gradient without the entries that point out of the pixel range."""
        if self.bounds is None:
            return gradient
        low, high = self.bounds
        return gradient.masked_fill(((points <= low) & (gradient < 0)) | ((points >= high) & (gradient > 0)), 0)

    def _boundary(self, delta: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        """Distance (n,) just beyond the linearised boundary, at most."""
        order = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[self.norm]  # of the dual norm
        slope = torch.linalg.vector_norm(gradient.flatten(1), order, dim=1).clamp_min(1e-12)
        distance: Tensor = (1 + _PAST_TIE) * (geometry_of(self.norm).size(delta) + values.abs() / slope)
        return distance

    def _radii(self, eps: Tensor, gamma: float, best: Tensor, adversarial: Tensor, boundary: Tensor) -> Tensor:
        """Radii (n,) of the next projection."""
        outside = torch.where(best.isfinite(), eps * (1 + gamma), boundary)
        return torch.where(adversarial, torch.minimum(eps * (1 - gamma), best), outside)

    def _moved(self, x: Tensor, delta: Tensor, eps: Tensor) -> Tensor:
        """Perturbations projected onto balls of radii (n,), then onto the pixel range."""
        scale = per_example(eps.clamp_min(torch.finfo(x.dtype).tiny), x)
        delta = geometry_of(self.norm).project(delta / scale, 1.0) * scale
        return delta if self.bounds is None else (x + delta).clamp(*self.bounds) - x
