"""Intervals that contain the values of a layer."""

from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """Elementwise bounds of a tensor.

    Attributes:
        lower: Lower bounds (N, ...).
        upper: Upper bounds (N, ...).
    """

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """Largest absolute value, elementwise."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def intersect(self, other: "Interval") -> "Interval":
        """Intersection, for two valid bounds of the same values."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))


def rounding_unit(dtype: torch.dtype) -> float:
    """Largest relative error of one operation, 2^-24 in float32."""
    return float(torch.finfo(dtype).eps) / 2
