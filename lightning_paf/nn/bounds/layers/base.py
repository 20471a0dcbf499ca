"""The interface of a layer with bounds."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from lightning_paf.nn.bounds.interval import Interval


class Backward(NamedTuple):
    """A linear lower bound in terms of the inputs of a layer.

    Attributes:
        weights: Weights of each input (K, N or 1, ...).
        constant: (K, N or 1), float64.
        size: (K, N or 1), float64; the margin of rounding errors in multiples of the rounding unit.
    """

    weights: tuple[Tensor, ...]
    constant: Tensor | float
    size: Tensor | float


class Layer(ABC):
    """A layer whose values can be bounded.

    Bounds hold for the function over the real numbers, and for its evaluation in the dtype of the bounds: every sum of
    n products may have any relative error of n rounding units per product, in any order of additions.
    """

    @abstractmethod
    def interval(self, inputs: tuple[Interval, ...], unit: float) -> Interval:
        """Bounds of the outputs from bounds of the inputs.

        Args:
            inputs: Bounds (N, ...) of each input.
            unit: Relative rounding error of one operation; 0 ignores rounding.
        """

    @abstractmethod
    def backward(self, weights: Tensor, inputs: tuple[Interval, ...], unit: float) -> Backward:
        """Bound a weighted sum of outputs below by one of the inputs.

        Args:
            weights: (K, N or 1, ...), shaped like the outputs.
            inputs: Bounds (N, ...) of each input.
            unit: As in `interval`.
        """
