"""Sets of perturbed images, and the minimum of linear functions on them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_paf.nn.bounds.interval import Interval

CHUNK = 16
"""Largest number of products that are added without float64."""
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
        centre, radius = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        (middle,) = dot(weights, centre)
        spread, size = dot(weights.abs(), radius, centre.abs() + radius)
        return middle - spread - 1.1 * (CHUNK + 4) * unit * size


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
        base = dot(weights, self.x)[0] - 1.1 * (CHUNK + 4) * unit * dot(weights.abs(), self.x + 2 * self.eps)[0]
        squares = weights.detach().square()
        multiplier = total(squares).sqrt() / (2 * self.eps)
        for _ in range(self.rounds):
            rounded = multiplier.clamp_min(1e-20).to(weights.dtype)  # the same number in both terms
            factor = per_row(rounded, weights)
            shift = (-weights / (2 * factor)).clamp(low, high)
            cost = total(weights * shift + factor * shift.square()) - rounded.double() * self.eps**2
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


def dot(weights: Tensor, *values: Tensor) -> list[Tensor]:
    """Sums of weights times values, each (K, N) in float64.

    Weights have the shape (K, N or 1, ...), values (N or 1, ...) or (K, N, ...).

    At most `CHUNK` products are added in the dtype of the weights, so that the relative error is that many rounding
    units.
    """
    if values[0].dim() == weights.dim():
        return [total(weights * value) for value in values]
    count, batch = max(weights.shape[1], *(len(value) for value in values)), weights.shape[1]
    columns = torch.stack([value.expand(count, *value.shape[1:]).flatten(1) for value in values], 2)
    if batch == 1:
        columns = columns.permute(1, 0, 2).flatten(1)[None]
    size = columns.shape[1]
    length = next(length for length in range(min(CHUNK, size), 0, -1) if size % length == 0)
    left = weights.reshape(len(weights), batch * size // length, length).transpose(0, 1)  # K can be 0
    parts = left @ columns.reshape(len(left), length, -1).to(weights.dtype)
    sums = parts.view(batch, len(left) // batch, *parts.shape[1:]).sum(1, dtype=torch.float64)
    return list(sums.transpose(0, 1).reshape(len(weights), count, len(values)).unbind(2))


def total(values: Tensor) -> Tensor:
    """Sums over all but the first two dimensions, accumulated in float64."""
    return values.flatten(2).sum(2, dtype=torch.float64)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """View (K, N) to broadcast with `like` (K, N, ...)."""
    return values.view(*values.shape, *[1] * (like.dim() - 2))
