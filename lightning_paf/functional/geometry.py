"""Projections, steepest directions and random points of norm balls.

Norms are l-infinity, l2 and l1. All functions take perturbations of shape (N, ...), with one ball per example, centred
at zero or at the image `x`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from lightning_paf.functional.predictions import known_finite
from lightning_paf.types import Norm

Bounds = tuple[float, float] | None
"""Smallest and largest pixel value, or None for unbounded pixels."""


class Geometry(ABC):
    """Stateless operations in a norm; get one from `geometry_of`."""

    fraction_of_radius: ClassVar[float] = 1 - 1e-6
    """Fraction of the radius that `move` uses.

    The rest absorbs the rounding of a sum over many pixels.
    """

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation, (N,)."""

    @abstractmethod
    def uniform(self, x: Tensor, radius: float) -> Tensor:
        """Draw perturbations shaped like `x`, uniform in the ball.

        They come from the global random generator of the device.
        """

    @abstractmethod
    def ascent(self, gradient: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """Steepest ascent direction of norm 1 at `x`; zero for a zero gradient."""

    @abstractmethod
    def project(self, delta: Tensor, radius: float) -> Tensor:
        """Project onto the ball in l2 distance; points inside are unchanged."""

    def move(self, x: Tensor, delta: Tensor, radius: float, bounds: Bounds) -> Tensor:
        """Project `x + delta` onto the ball around `x`, then onto `bounds`.

        For `x` inside `bounds`, the result lies in both sets, in floating point too: the sum is rounded towards `x`.
        For l-infinity it is the nearest such point, for l2 and l1 a near one.
        """
        delta = self.project(delta, self.fraction_of_radius * radius)
        moved = _sum_towards(x, delta)
        return moved if bounds is None else moved.clamp(*bounds)

    def returns(self, x: Tensor, radius: float, bounds: Bounds) -> Callable[[Tensor], Tensor]:
        """Make a function that projects images as `move` does.

        Use it for many steps around one `x`.
        """
        return lambda moved: self.move(x, moved - x, radius, bounds)


class Linf(Geometry):
    """Largest absolute change of a pixel."""

    fraction_of_radius = 1.0

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation, (N,)."""
        return delta.flatten(1).abs().amax(dim=1)

    def uniform(self, x: Tensor, radius: float) -> Tensor:
        """Each pixel uniform in [-radius, radius]."""
        return torch.empty_like(x).uniform_(-radius, radius)

    def ascent(self, gradient: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """The sign of the gradient."""
        del x, bounds
        return gradient.sign()

    def project(self, delta: Tensor, radius: float) -> Tensor:
        """Clamp each pixel, to a radius rounded down."""
        limit = _rounded_down(radius, delta.dtype)
        return delta.clamp(-limit, limit)

    def returns(self, x: Tensor, radius: float, bounds: Bounds) -> Callable[[Tensor], Tensor]:
        """Clamp each pixel to an interval."""
        limit = torch.full_like(x, _rounded_down(radius, x.dtype))
        low, high = _sum_towards(x, -limit), _sum_towards(x, limit)
        if bounds is not None:
            low, high = low.clamp(*bounds), high.clamp(*bounds)
        return lambda moved: torch.clamp(moved, low, high)


class L2(Geometry):
    """Euclidean length over all pixels and channels."""

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation, (N,)."""
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def uniform(self, x: Tensor, radius: float) -> Tensor:
        """Points uniform in volume: uniform direction, length close to `radius`."""
        noise = torch.randn_like(x)
        pixels = x[0].numel()
        length = torch.rand(len(x), device=x.device, dtype=x.dtype) ** (1 / pixels)
        return noise * per_example(radius * length / _positive(self.size(noise)), x)

    def ascent(self, gradient: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """The normalised gradient."""
        del x, bounds
        # Scaled first: the squares of a saturated loss's gradient underflow in single precision.
        gradient = gradient / per_example(_positive(gradient.flatten(1).abs().amax(dim=1)), gradient)
        return gradient / per_example(_positive(self.size(gradient)), gradient)

    def project(self, delta: Tensor, radius: float) -> Tensor:
        """Shrink to length `radius`."""
        return delta * per_example((radius / _positive(self.size(delta))).clamp_max(1), delta)


class L1(Geometry):
    """Sum of the absolute changes of all pixels and channels.

    The exact steepest direction changes a single pixel. As in SLIDE (Tramèr & Boneh 2019), `ascent` uses the largest
    1 % of the gradient's entries. It keeps their sizes (SLIDE: only their signs), so that the steps converge to the
    optimum of a linear loss.
    """

    fraction: ClassVar[float] = 0.01
    """Fraction of the pixels that one step changes (at least one pixel)."""

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation, (N,)."""
        return delta.flatten(1).abs().sum(dim=1)

    def uniform(self, x: Tensor, radius: float) -> Tensor:
        """Exponential spacings with random signs: D of D + 1 random parts of the radius."""
        parts = torch.empty_like(x).exponential_()
        rest = torch.empty(len(x), device=x.device, dtype=x.dtype).exponential_()
        signs = torch.randint_like(x, 2).mul_(2).sub_(1)
        return signs * parts * per_example(radius / _positive(self.size(parts) + rest), x)

    def ascent(self, gradient: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
        """The largest 1 % of the gradient among pixels that can move, normalised."""
        if bounds is not None:
            stuck = ((x <= bounds[0]) & (gradient < 0)) | ((x >= bounds[1]) & (gradient > 0))
            gradient = gradient.masked_fill(stuck, 0.0)
        flat = gradient.flatten(1)
        count = max(1, round(self.fraction * flat.shape[1]))
        indices = flat.abs().topk(count, dim=1).indices
        sparse = torch.zeros_like(flat).scatter(1, indices, flat.gather(1, indices))
        return (sparse / _positive(self.size(sparse))[:, None]).view_as(gradient)

    def project(self, delta: Tensor, radius: float) -> Tensor:
        """Soft thresholding (Duchi et al. 2008, fig. 1)."""
        flat = delta.flatten(1)
        sizes = flat.abs().sort(dim=1, descending=True).values
        excess = sizes.cumsum(dim=1) - radius
        rank = torch.arange(1, flat.shape[1] + 1, device=flat.device)
        active = (sizes * rank > excess).sum(dim=1, keepdim=True).clamp_min(1)
        threshold = (excess.gather(1, active - 1) / active).clamp_min(0)
        thinned = flat.sign() * (flat.abs() - threshold).clamp_min(0)
        # The threshold is a difference of large sums, whose rounding can leave points outside.
        return (thinned * (radius / _positive(self.size(thinned)))[:, None].clamp_max(1)).view_as(delta)


_GEOMETRIES: Mapping[Norm, Geometry] = MappingProxyType({"linf": Linf(), "l2": L2(), "l1": L1()})


def geometry_of(norm: Norm) -> Geometry:
    """Look up the geometry of a norm: `linf`, `l2` or `l1`.

    Raises:
        ValueError: Unknown norm.
    """
    if norm not in _GEOMETRIES:
        raise ValueError(f"norm must be one of {', '.join(_GEOMETRIES)}, got {norm!r}. Pass norm=linf.")
    return _GEOMETRIES[norm]


def finite_gradient(gradient: Tensor) -> Tensor:
    """Replace NaN by 0, and infinities by the largest finite magnitude.

    The magnitude is that of the example, (N, ...), and infinities keep their sign. A larger magnitude would outweigh
    all other pixels, and could point out of the pixel range.
    """
    if known_finite(gradient):
        return gradient
    finite = gradient.nan_to_num(0.0, 0.0, 0.0)
    largest = _positive(torch.linalg.vector_norm(finite.flatten(1), torch.inf, dim=1))
    return torch.where(gradient.isinf(), torch.copysign(per_example(largest, gradient), gradient), finite)


def with_finite_gradient(x: Tensor) -> Tensor:
    """Attach a backward hook with `finite_gradient` to `x`, for external code."""
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(finite_gradient)  # type: ignore[no-untyped-call]
    return x


def _sum_towards(x: Tensor, delta: Tensor) -> Tensor:
    """`x + delta`, rounded towards `x` where rounding to nearest would exceed `delta`."""
    moved = x + delta
    return torch.where((moved - x).abs() > delta.abs(), torch.nextafter(moved, x), moved)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """View (N,) as (N, 1, ...), to broadcast with `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _positive(values: Tensor) -> Tensor:
    """Replace zero divisors by the smallest normal number, so that 0 / 0 is 0."""
    return values.clamp_min(torch.finfo(values.dtype).tiny)


@cache
def _rounded_down(radius: float, dtype: torch.dtype) -> float:
    """Round `radius` down to `dtype`."""
    rounded = torch.tensor(radius, dtype=dtype)
    if rounded.item() > radius:
        rounded = torch.nextafter(rounded, torch.zeros_like(rounded))
    return rounded.item()
