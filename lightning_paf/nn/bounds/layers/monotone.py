"""Bounds of linear layers without negative weights: averages, sums, reshaping."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_paf.nn.bounds.interval import Interval
from lightning_paf.nn.bounds.layers.base import Backward, Layer
from lightning_paf.nn.bounds.region import dot


class Monotone(Layer):
    """A linear map that increases with every input.

    Args:
        apply: The map of a batch (N, ...).
        terms: Largest number of inputs that it adds up; 0 if it only moves them.
    """

    def __init__(self, apply: Callable[[Tensor], Tensor], terms: int = 0) -> None:
        self.apply, self.error = apply, 2.1 * (terms + 4) * bool(terms)

    def interval(self, inputs: tuple[Interval, ...], unit: float) -> Interval:
        """Map both ends."""
        low, high = (self.apply(end) for end in inputs[0])
        margin = self.error * unit * self.apply(inputs[0].magnitude) if unit and self.error else 0.0
        return Interval(low - margin, high + margin)

    def backward(self, weights: Tensor, inputs: tuple[Interval, ...], unit: float) -> Backward:
        """The vector-Jacobian product, which is the transposed map."""
        zeros = inputs[0].lower.new_zeros((*weights.shape[:2], *inputs[0].lower.shape[1:])).flatten(0, 1)
        with torch.enable_grad():
            zeros.requires_grad_(True)
            outputs = self.apply(zeros)
        flat = weights.flatten(0, 1)
        (moved,) = torch.autograd.grad(outputs, zeros, flat, create_graph=flat.requires_grad)
        has_error = unit and self.error
        size = self.error * dot(weights.abs(), self.apply(inputs[0].magnitude))[0] if has_error else 0.0
        return Backward((moved.view(*weights.shape[:2], *zeros.shape[1:]),), 0.0, size)


class Addition(Layer):
    """The sum of two layers of the same shape."""

    def interval(self, inputs: tuple[Interval, ...], unit: float) -> Interval:
        """Add the ends."""
        (low, high), (more_low, more_high) = inputs
        margin = 4 * unit * (inputs[0].magnitude + inputs[1].magnitude)
        return Interval(low + more_low - margin, high + more_high + margin)

    def backward(self, weights: Tensor, inputs: tuple[Interval, ...], unit: float) -> Backward:
        """The same weights for both."""
        size = 8 * dot(weights.abs(), inputs[0].magnitude + inputs[1].magnitude)[0] if unit else 0.0
        return Backward((weights, weights), 0.0, size)


def average(apply: Callable[[Tensor], Tensor], kernel: int | tuple[int, ...]) -> Monotone:
    """Average pooling with a kernel of this size."""
    return Monotone(apply, kernel**2 if isinstance(kernel, int) else math.prod(kernel))


def average_over(apply: Callable[[Tensor], Tensor], sample: Tensor) -> Monotone:
    """Averages over some dimensions of inputs such as `sample` (1, ...)."""
    return Monotone(apply, sample.numel() // apply(sample).numel())


def adaptive_average(apply: Callable[[Tensor], Tensor], sample: Tensor) -> Monotone:
    """Average pooling of images such as `sample` (1, C, H, W) to a fixed size."""
    sides = zip(sample.shape[2:], apply(sample).shape[2:], strict=True)
    return Monotone(apply, math.prod(-(-side // out) + bool(side % out) for side, out in sides))
