"""Lines below and above a scalar function on an interval.

For any slope a, the highest line below f on [l, u] has the intercept min f(x) - a x. Between neighbouring inflection
points f is convex or concave. On a concave piece the minimum is at an end. On a convex one it is at an end or where
f' = a. Bisection finds this point only nearly, so the intercept is that of the tangent there, at the end of the piece
where the tangent is lower. It is valid for every result of the bisection.
"""

from collections.abc import Iterator
from functools import reduce
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_paf.nn.bounds.curve import Curve
from lightning_paf.nn.bounds.interval import Interval

_BISECTIONS = 20
_FRACTIONS = (1 / 16, 1 / 4, 1 / 2, 1.0)
"""Distances from the middle, in halves of the width, of the ends of chords."""
_FAR = 1e6
"""An input where the slope of activations no longer changes."""
_ROUNDINGS = 32
"""Operations in the evaluation of an activation and of its line, for the margin."""


class Lines(NamedTuple):
    """`lower_slope * x + lower <= f(x) <= upper_slope * x + upper`, elementwise."""

    lower_slope: Tensor
    lower: Tensor
    upper_slope: Tensor
    upper: Tensor


class Slopes(NamedTuple):
    """Slopes of the lines below and above."""

    lower: Tensor
    upper: Tensor


def lines(curve: Curve, interval: Interval, unit: float, slopes: Slopes | None = None) -> Lines:
    """Lines below and above a function, valid in the dtype of the interval.

    Args:
        curve: The function.
        interval: Range of inputs (N, ...).
        unit: Relative rounding error of one operation; 0 ignores rounding, and is differentiable.
        slopes: Slopes (K, N, ...); by default those whose lines are nearest to the function at the middle.
    """
    dtype = interval.lower.dtype
    low, high = (end.double() if unit else end for end in interval)
    curve = curve.to(low)
    if slopes is None:
        slopes = Slopes(nearest_slope(curve, low, high), nearest_slope(curve.negative(), low, high).neg())
    slopes = Slopes(*(slope.to(dtype) for slope in slopes))
    below, above = (slope.to(low) for slope in slopes)
    lower = least_intercept(curve, below, low, high)
    upper = -least_intercept(curve.negative(), -above, low, high)
    if unit:
        lower = lower - _margin(curve, below, low, high, unit)
        upper = upper + _margin(curve, above, low, high, unit)
    return Lines(slopes.lower, lower.to(dtype), slopes.upper, upper.to(dtype))


def value_range(curve: Curve, interval: Interval, unit: float) -> Interval:
    """Smallest and largest value of a function, as lines of slope 0."""
    zero = torch.zeros_like(interval.lower)
    bounds = lines(curve, interval, unit, Slopes(zero, zero))
    return Interval(bounds.lower, bounds.upper)


def least_intercept(curve: Curve, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Lower bound of the minimum of `f(x) - slope * x` on [low, high], elementwise.

    It is differentiable by slope, ends and parameters.
    """
    shape = torch.broadcast_shapes(slope.shape, low.shape)  # type: ignore[no-untyped-call]
    slope, low, high = slope.expand(shape), low.expand(shape), high.expand(shape)
    points = _points(curve, low, high)
    best = reduce(torch.minimum, (curve.value(point) - slope * point for point in points))
    for left, right in pairwise(points):
        with torch.no_grad():
            first, last = (curve.slope(point) for point in _inside(left, right))
            touches = (first < slope) & (slope < last)
        if bool(touches.any()):
            ends = (part[touches] for part in (slope, left, right))
            tangent = _tangent_intercept(curve.at(touches), *ends)
            best = best.masked_scatter(touches, torch.minimum(best[touches], tangent))
    return best


def _tangent_intercept(curve: Curve, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Lower bound of the minimum of `f(x) - slope * x` on a convex piece."""
    with torch.no_grad():
        low, high = left, right
        for _ in range(_BISECTIONS):
            x = (low + high) / 2
            below = curve.slope(x) < slope
            low, high = torch.where(below, x, low), torch.where(below, high, x)
        rest = curve.slope(x) - slope
        tilt = torch.minimum(rest * (left - x), rest * (right - x))
    return curve.value(x) - slope * x + tilt


def nearest_slope(curve: Curve, low: Tensor, high: Tensor) -> Tensor:
    """Slope of a line below a function that is nearly the nearest at the middle.

    It is that of the lowest chord over the middle, among those between a few points on both sides.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    left = [(fraction, curve.value(middle - fraction * half)) for fraction in _FRACTIONS]
    right = [(fraction, curve.value(middle + fraction * half)) for fraction in _FRACTIONS]
    height, rise = next(chords := _chords(left, right))
    for other, its_rise in chords:
        lower = other < height
        height, rise = torch.where(lower, other, height), torch.where(lower, its_rise, rise)
    # A quotient of two small differences would be noise.
    smallest = torch.finfo(low.dtype).eps ** 0.5 * (1 + middle.abs())
    return torch.where(half > smallest, rise / torch.maximum(half, smallest), curve.slope(middle))


def _chords(left: list[tuple[float, Tensor]], right: list[tuple[float, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Height over the middle, and slope times half the width, of every chord."""
    for (h, below), (k, above) in product(left, right):
        yield (below * k + above * h) / (h + k), (above - below) / (h + k)


def _points(curve: Curve, low: Tensor, high: Tensor) -> list[Tensor]:
    """Ends of the pieces of [low, high] on which a function is convex or concave."""
    return [low, *(torch.minimum(torch.maximum(point, low), high) for point in curve.inflections(low)), high]


def _inside(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Points just inside an interval, where a kink at an end has no effect."""
    width = (right - left) * 2**-40
    return left + torch.maximum(width, left.abs() * 2**-51), right - torch.maximum(width, right.abs() * 2**-51)


def _margin(curve: Curve, slope: Tensor, low: Tensor, high: Tensor, unit: float) -> Tensor:
    """Bound of the rounding errors of the function and of the line."""
    points = _points(curve, low, high)
    far = [torch.tensor(side * _FAR).to(low) for side in (-1, 1)]
    steepest = reduce(torch.maximum, (curve.slope(point).abs() for point in (*points, *far)))
    largest = reduce(torch.maximum, (curve.value(point).abs() for point in points))
    reach = torch.maximum(low.abs(), high.abs())
    return _ROUNDINGS * unit * (reach * (steepest + slope.abs()) + largest)


def slope_range(curve: Curve, interval: Interval) -> Interval:
    """Smallest and largest derivative on an interval, elementwise, up to rounding."""
    curve, (low, high) = curve.to(interval.lower), interval
    pieces = pairwise(_points(curve, low, high))
    slopes = [curve.slope(point) for left, right in pieces for point in _inside(left, right)]
    return Interval(reduce(torch.minimum, slopes), reduce(torch.maximum, slopes))
