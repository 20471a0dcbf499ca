"""Sets of perturbed images, and the minimum of linear functions on them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_paf.nn.bounds.interval import Interval

_EXCESS = 1 + 1e-6
"""Factor of the radius, since attacks reach it up to rounding."""


class Region(ABC):
    """A set of images around each of N images."""

    @abstractmethod
    def interval(self) -> Interval:
        """Smallest box that contains the set, bounds (N, C, H, W)."""

    @abstractmethod
    def minimum(self, weights: Tensor, unit: float) -> Tensor:
        """Lower bound of the sum of weights times pixels.

        Args:
            weights: (K, N or 1, C, H, W).
            unit: Relative rounding error of one operation; 0 ignores rounding.

        Returns:
            (K, N), float64.
        """


class Box(Region):
    """All images between two images.

    Args:
        lower: Lower bounds of pixels (N, C, H, W).
        upper: Upper bounds of pixels.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self.lower, self.upper = lower, upper

    @classmethod
    def around(cls, x: Tensor, eps: float) -> "Box":
        """Linf ball around images, intersected with [0, 1]."""
        low, high = ((x.double() + side * eps * _EXCESS).to(x.dtype) for side in (-1, 1))
        infinity = torch.tensor(math.inf, dtype=x.dtype, device=x.device)
        return cls(torch.nextafter(low, -infinity).clamp(0, 1), torch.nextafter(high, infinity).clamp(0, 1))

    def interval(self) -> Interval:
        """The box itself."""
        return Interval(self.lower, self.upper)

    def minimum(self, weights: Tensor, unit: float) -> Tensor:
        """Centre minus radius of the range of the sum."""
        size = weights.abs()
        centre, radius = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        least = total(weights * centre - size * radius)
        return least - 8 * unit * total(size * (centre.abs() + radius)) if unit else least


class Ball(Region):
    """L2 ball around images, intersected with [0, 1].

    Args:
        x: Images (N, C, H, W) in [0, 1].
        eps: Radius, above 0.
    """

    rounds = 3
    """Updates of the multiplier of the ball constraint."""

    def __init__(self, x: Tensor, eps: float) -> None:
        self.x, self.eps, self.box = x, eps * _EXCESS, Box.around(x, eps)

    def interval(self) -> Interval:
        """The box of the linf ball of the same radius."""
        return self.box.interval()

    def minimum(self, weights: Tensor, unit: float) -> Tensor:
        """Lagrangian dual of the ball constraint, where pixels are bounded by the box.

        Every multiplier gives a valid bound. The first is optimal without the box, so the bound is at least that of the
        ball alone; the next ones account for clipped pixels.
        """
        low, high = self.box.lower - self.x, self.box.upper - self.x
        best = self.box.minimum(weights, unit)
        base = total(weights * self.x)
        if unit:
            base = base - 8 * unit * total(weights.abs() * (self.x + 2 * self.eps))
        squares = weights.detach().square()
        multiplier = total(squares).sqrt() / (2 * self.eps)
        for _ in range(self.rounds):
            factor = per_row(multiplier.clamp_min(1e-20), weights)
            shift = (-weights / (2 * factor)).clamp(low, high)
            cost = total(weights * shift + factor * shift.square()) - multiplier.clamp_min(1e-20) * self.eps**2
            if unit:
                cost = cost - 8 * unit * total((weights * shift).abs() + factor * shift.square())
            best = torch.maximum(best, base + cost)
            clipped = (shift <= low) | (shift >= high)
            rest = self.eps**2 - total(shift.detach().square() * clipped)
            free = total(squares * ~clipped)
            multiplier = (free / rest.clamp_min(1e-20)).sqrt() / 2
        return best


_REGIONS: Mapping[str, Callable[[Tensor, float], Region]] = MappingProxyType({"linf": Box.around, "l2": Ball})


def region_of(norm: str, x: Tensor, eps: float) -> Region:
    """Build the norm ball around images, intersected with [0, 1].

    Args:
        norm: `linf` or `l2`.
        x: Images (N, C, H, W) in [0, 1].
        eps: Radius.

    Raises:
        ValueError: Unknown norm; the radius is not positive.
    """
    if norm not in _REGIONS:
        raise ValueError(f"norm must be one of {', '.join(_REGIONS)} for certificates, got {norm!r}. Pass linf.")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be above 0 and finite, got {eps}. Pass e.g. 8/255.")
    return _REGIONS[norm](x, eps)


def total(values: Tensor) -> Tensor:
    """Sums over all but the first two dimensions, accumulated in float64."""
    return values.flatten(2).sum(2, dtype=torch.float64)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """View (K, N) in the dtype of `like` (K, N, ...), to broadcast with it."""
    return values.to(like.dtype).view(*values.shape, *[1] * (like.dim() - 2))
