"""Gradient descent with gradients estimated from scores."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.minimal import MinimalAttack, Nearest
from lightning_paf.functional.geometry import Bounds
from lightning_paf.functional.losses import margin
from lightning_paf.functional.predictions import undefined_first
from lightning_paf.types import Forward, Radius


class ZOO(MinimalAttack):
    """Descends hinge plus distance along Gaussian directions, asking for scores only (Chen et al. 2017).

    The form of Li et al. (2022, "A Review of Adversarial Attack and Defense for Classification Methods"): minimise
    `max(z_y - max_j z_j, 0) + c |d|^2`, with the slope along one Gaussian direction from two queries. (Chen et al.
    estimate single coordinates and move them by Adam.) The nearest adversarial image of all that were asked is kept.

    Args:
        eps: Largest l2 length of the perturbation that counts.
        queries: Images shown to the model for each image; two a step.
        c: Weight of the squared distance.
        lr: Length of a step, in multiples of the estimated gradient.
        smoothing: How far along the direction the second query lies. The review uses 1e-6, which single precision does
            not resolve.
        bounds: Smallest and largest pixel value; null for inputs without bounds.

    Raises:
        ValueError: As for every attack; fewer than 2 queries; a number that is not positive.
    """

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        queries: int = 5000,
        c: float = 0.1,
        lr: float = 5e-3,
        smoothing: float = 1e-3,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(eps, norm="l2", bounds=bounds)
        for name, value in (("c", c), ("lr", lr), ("smoothing", smoothing)):
            if not value > 0:
                raise ValueError(f"{name}={value} must be positive. Usual are c=0.1, lr=0.005, smoothing=0.001.")
        self.queries = queries
        self.c = c
        self.lr = lr
        self.smoothing = smoothing
        self.require(queries=2)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        names = ("queries", "c", "lr", "smoothing")
        return super().describe() | {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images and distances."""
        nearest, rows, delta = Nearest(x, "l2"), torch.arange(len(x), device=x.device), torch.zeros_like(x)
        for _ in range(self.queries // 2):
            points, values, misled = self._objective(forward, x[rows], y[rows], delta)
            nearest.update(rows, points, misled)
            going = nearest.distances[rows] > 0  # misclassified as it is: nothing to look for
            rows, delta, values = rows[going], delta[going], values[going]
            if len(rows) == 0:
                break
            delta = delta - self.lr * self.estimate(forward, x[rows], y[rows], delta, values)
        return nearest.x, nearest.distances

    def estimate(self, forward: Forward, x: Tensor, y: Tensor, delta: Tensor, values: Tensor) -> Tensor:
        """The gradient of the objective at `delta`, from one query beside it; its mean is that of a smoothed objective.

        Args:
            forward: Images to logits.
            x: Images (n, C, H, W).
            y: Labels (n,).
            delta: Perturbations (n, C, H, W).
            values: The objective there (n,).
        """
        direction = torch.randn_like(delta)
        _, beside, _ = self._objective(forward, x, y, delta + self.smoothing * direction)
        slope = (beside - values) / self.smoothing
        return slope.view(-1, *[1] * (x.dim() - 1)) * direction

    def _objective(self, forward: Forward, x: Tensor, y: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (n, C, H, W) inside the bounds, the objective (n,), and whether the model is misled (n,)."""
        points = x + delta if self.bounds is None else (x + delta).clamp(*self.bounds)
        logits = forward(points)
        lead = undefined_first(margin(logits, y), logits)
        values = (-lead).clamp_min(0) + self.c * (points - x).flatten(1).square().sum(1)
        return points, values, lead > 0
