"""Bounds of activation functions."""

import torch
from torch import Tensor

from lightning_paf.nn.bounds.curve import Curve
from lightning_paf.nn.bounds.interval import Interval
from lightning_paf.nn.bounds.layers.base import Backward, Layer
from lightning_paf.nn.bounds.lines import Lines, lines, value_range
from lightning_paf.nn.bounds.region import CHUNK, dot


class Pointwise(Layer):
    """A scalar function of every element.

    Args:
        curve: The function.
    """

    def __init__(self, curve: Curve) -> None:
        self.curve = curve

    def interval(self, inputs: tuple[Interval, ...], unit: float) -> Interval:
        """Smallest and largest value."""
        return value_range(self.curve, inputs[0], unit)

    def backward(self, weights: Tensor, inputs: tuple[Interval, ...], unit: float) -> Backward:
        """Replace the function by its default lines."""
        return along(lines(self.curve, inputs[0], unit), weights, inputs[0], unit)


def along(bounds: Lines, weights: Tensor, interval: Interval, unit: float) -> Backward:
    """Take the line below for positive weights, and that above for negative ones."""
    positive, negative = weights.clamp(min=0), weights.clamp(max=0)
    moved = torch.addcmul(positive * bounds.lower_slope, negative, bounds.upper_slope)
    if not unit:
        return Backward((moved,), dot(positive, bounds.lower)[0] + dot(negative, bounds.upper)[0], 0.0)
    steepest = torch.maximum(bounds.lower_slope.abs(), bounds.upper_slope.abs())
    offset = torch.maximum(bounds.lower.abs(), bounds.upper.abs())
    size = 4 * steepest * interval.magnitude + (CHUNK + 4) * offset
    (low, low_size), (high, high_size) = dot(positive, bounds.lower, size), dot(negative, bounds.upper, size)
    return Backward((moved,), low + high, 1.1 * (low_size - high_size))
