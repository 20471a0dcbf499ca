"""Bounds of affine layers: convolution, linear layers, and scaling of channels."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nn.bounds.interval import Interval
from lightning_paf.nn.bounds.layers.base import Backward, Layer
from lightning_paf.nn.bounds.region import CHUNK, dot


class Affine(Layer):
    """y = W x + b.

    Attributes:
        terms: Largest number of products in an output.
        transposed_terms: Largest number of products in an input of the transposed map.
        bias: b, which broadcasts against outputs (N, ...).
        bias_size: Absolute value of b, or the sum of those of its summands.
    """

    terms: int
    transposed_terms: int
    bias: Tensor
    bias_size: Tensor

    @abstractmethod
    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """W x, or |W| x."""

    @abstractmethod
    def transposed(self, weights: Tensor, shape: torch.Size) -> Tensor:
        """W^T A for weights A (batch, ...) of outputs.

        `shape` is that of an input without the batch.
        """

    def interval(self, inputs: tuple[Interval, ...], unit: float) -> Interval:
        """Centre and radius (Gowal et al. 2018)."""
        low, high = inputs[0]
        centre, radius = (low + high) / 2, (high - low) / 2
        # Twice, since both these bounds and the bounded network round.
        error = 2.1 * (self.terms + 4) * unit
        spread = self.apply(radius + error * (centre.abs() + radius) if unit else radius, absolute=True)
        if unit:
            spread = spread * (1 + error) + error * self.bias_size
        middle = self.apply(centre) + self.bias
        return Interval(middle - spread, middle + spread)

    def backward(self, weights: Tensor, inputs: tuple[Interval, ...], unit: float) -> Backward:
        """Multiply by the transposed matrix."""
        shape = inputs[0].lower.shape[1:]
        moved = self.transposed(weights.flatten(0, 1), shape).view(*weights.shape[:2], *shape)
        bias = self.bias.expand(1, *weights.shape[2:])
        if not unit:
            return Backward((moved,), dot(weights, bias)[0], 0.0)
        products = (self.terms + self.transposed_terms + 8) * self.apply(inputs[0].magnitude, absolute=True)
        size = products + (self.terms + CHUNK + 8) * self.bias_size
        return Backward((moved,), dot(weights, bias)[0], 1.1 * dot(weights.abs(), size)[0])


class Linear(Affine):
    """A matrix.

    Args:
        weight: (out, in).
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.bias_size, (self.transposed_terms, self.terms) = self.bias.abs(), weight.shape

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """W x, or |W| x."""
        return F.linear(x, self.weight.abs() if absolute else self.weight)

    def transposed(self, weights: Tensor, shape: torch.Size) -> Tensor:
        """W^T A."""
        return weights @ self.weight


class Conv(Affine):
    """A two-dimensional convolution with zero padding.

    Args:
        weight: (out, in / groups, height, width).
        bias: (out,) or None.
        stride: Two numbers, as the next two.
        padding: Rows and columns of zeros on each side.
        dilation: Gaps between the elements of the kernel.
        groups: Blocks of channels.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
    ) -> None:
        self.weight, self.stride, self.padding, self.dilation, self.groups = weight, stride, padding, dilation, groups
        self.bias = (weight.new_zeros(len(weight)) if bias is None else bias).view(-1, 1, 1)
        self.bias_size = self.bias.abs()
        out, inner, *kernel = weight.shape
        self.terms, self.transposed_terms = (part * kernel[0] * kernel[1] for part in (inner, out // groups))

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """W x, or |W| x."""
        weight = self.weight.abs() if absolute else self.weight
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def transposed(self, weights: Tensor, shape: torch.Size) -> Tensor:
        """Transposed convolution to images of the size of the inputs."""
        sides = zip(
            shape[1:], weights.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
        )
        rest = [
            size - ((out - 1) * step - 2 * pad + gap * (kernel - 1) + 1) for size, out, kernel, step, pad, gap in sides
        ]
        return F.conv_transpose2d(
            weights, self.weight, None, self.stride, self.padding, rest, self.groups, self.dilation
        )


class Scale(Affine):
    """A factor and a summand for every element, as in batch normalisation.

    Args:
        factor: Broadcasts against inputs (N, ...).
        bias: The same.
        bias_size: Sum of the absolute values of the summands of the bias; by default its absolute value.
    """

    terms = transposed_terms = 4  # the factor of a normalisation is rounded several times

    def __init__(self, factor: Tensor, bias: Tensor, bias_size: Tensor | None = None) -> None:
        self.factor, self.bias = factor, bias
        self.bias_size = bias.abs() if bias_size is None else bias_size

    @classmethod
    def of_norm(cls, norm: nn.modules.batchnorm._BatchNorm) -> "Scale":
        """Batch normalisation with running statistics, which it must have."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight
        shift = -norm.running_mean * factor
        bias = torch.zeros_like(shift) if norm.bias is None else norm.bias
        size = shift.abs() + bias.abs()
        return cls(factor.view(-1, 1, 1), (shift + bias).view(-1, 1, 1), size.view(-1, 1, 1))

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """Multiply by the factor, or by its absolute value."""
        return x * (self.factor.abs() if absolute else self.factor)

    def transposed(self, weights: Tensor, shape: torch.Size) -> Tensor:
        """The same product."""
        return weights * self.factor
