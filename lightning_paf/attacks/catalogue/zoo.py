"""Gradient descent with gradients estimated from scores."""

from fractions import Fraction

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.minimal import MinimalAttack, Nearest
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import Bounds, per_example
from lightning_paf.functional.losses import margin
from lightning_paf.functional.predictions import undefined_first
from lightning_paf.types import Forward, Radius


class ZOO(MinimalAttack):
    """Score-based descent along Gaussian directions (Chen et al. 2017).

    As in Li et al. (2022, "A Review of Adversarial Attack and Defense for Classification Methods"): minimise
    `max(z_y - max_j z_j, 0) + c |d|^2`, with the slope along one Gaussian direction from two queries. (Chen et al.
    estimate single coordinates and optimise them with Adam.) The nearest adversarial query is returned.

    Args:
        eps: l2 radius within which a result counts as adversarial.
        queries: Query budget per image, two per step.
        c: Weight of the squared distance.
        lr: Length of a step, in multiples of the estimated gradient.
        smoothing: Distance of the second query. The review uses 1e-6, which single precision does not resolve.
        bounds: Smallest and largest pixel value; null for unbounded inputs.
        target: See `Attack`.

    Raises:
        ValueError: `queries` is below 2, or `c`, `lr` or `smoothing` is not positive; see also `Attack`.
    """

    settings = ("queries", "c", "lr", "smoothing")

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        queries: int = 5000,
        c: float = 0.1,
        lr: float = 5e-3,
        smoothing: float = 1e-3,
        bounds: Bounds = (0.0, 1.0),
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm="l2", bounds=bounds, target=target)
        self.queries, self.c, self.lr, self.smoothing = queries, c, lr, smoothing
        self.require(queries=2)
        self.require_positive("c", "lr", "smoothing")

    @torch.no_grad()
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest adversarial images and their distances."""
        nearest, rows, delta = Nearest(x, "l2"), torch.arange(len(x), device=x.device), torch.zeros_like(x)
        for _ in range(self.queries // 2):
            points, values, fooled = self._objective(forward, x[rows], y[rows], delta)
            nearest.update(rows, points, fooled)
            active = nearest.distances[rows] > 0  # the clean image is classified correctly
            rows, delta, values = rows[active], delta[active], values[active]
            if len(rows) == 0:
                break
            delta = delta - self.lr * self.estimate(forward, x[rows], y[rows], delta, values)
        return nearest.x, nearest.distances

    def estimate(self, forward: Forward, x: Tensor, y: Tensor, delta: Tensor, values: Tensor) -> Tensor:
        """Estimate the gradient of the smoothed objective at `delta` (n, C, H, W)."""
        direction = torch.randn_like(delta)
        _, moved, _ = self._objective(forward, x, y, delta + self.smoothing * direction)
        return per_example((moved - values) / self.smoothing, x) * direction

    def _objective(self, forward: Forward, x: Tensor, y: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clamped images (n, C, H, W), objective (n,), and mask of fooled images (n,)."""
        points = x + delta if self.bounds is None else (x + delta).clamp(*self.bounds)
        logits = forward(points)
        margins = undefined_first(margin(logits, y), logits)
        values = (-margins).clamp_min(0) + self.c * (points - x).flatten(1).square().sum(1)
        return points, values, margins > 0
