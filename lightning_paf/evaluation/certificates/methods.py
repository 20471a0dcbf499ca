"""Methods that bound margins between logits from below."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_paf.nn.bounds.crown import Relaxation, crown_bounds
from lightning_paf.nn.bounds.interval import rounding_unit
from lightning_paf.nn.bounds.lines import Slopes, slope_range
from lightning_paf.nn.bounds.network import Network
from lightning_paf.nn.bounds.propagation import lower_bound, propagate
from lightning_paf.nn.bounds.region import Region
from lightning_paf.nn.bounds.slopes import SlopeSearch


class Method(ABC):
    """Lower bounds of weighted sums of logits."""

    @abstractmethod
    def __call__(self, network: Network, region: Region, weights: Tensor) -> Tensor:
        """Bound the sums of N images.

        Args:
            network: The network.
            region: Set of images around each of N images.
            weights: (K, N, classes).

        Returns:
            (K, N), float64.
        """


class IBP(Method):
    """Interval bounds (Gowal et al. 2018), with the last layers merged into the sums."""

    def __call__(self, network: Network, region: Region, weights: Tensor) -> Tensor:
        """Bound the sums of N images, (K, N)."""
        unit = rounding_unit(weights.dtype)
        bounds = propagate(network, region, unit)
        return lower_bound(network, region, bounds, network.output, weights, unit, {}, network.activations)


class CrownIBP(Method):
    """Linear bounds with intermediate interval bounds (Zhang et al. 2020)."""

    def __call__(self, network: Network, region: Region, weights: Tensor) -> Tensor:
        """Bound the sums of N images, (K, N)."""
        unit = rounding_unit(weights.dtype)
        return lower_bound(network, region, propagate(network, region, unit), network.output, weights, unit, {})


class Crown(Method):
    """Linear bounds with intermediate linear bounds (Zhang et al. 2018)."""

    def __call__(self, network: Network, region: Region, weights: Tensor) -> Tensor:
        """Bound the sums of N images, (K, N)."""
        unit = rounding_unit(weights.dtype)
        bounds, relaxation = crown_bounds(network, region, unit)
        return lower_bound(network, region, bounds, network.output, weights, unit, relaxation.lines)


class AlphaCrown(Method):
    """CROWN with optimised slopes in the bound of the sums (Xu et al. 2021).

    Slopes in intermediate bounds stay those of CROWN. The bounds are at least those of CROWN.

    Args:
        steps: Steps of Adam.
    """

    def __init__(self, steps: int = 20) -> None:
        self.steps = steps

    def __call__(self, network: Network, region: Region, weights: Tensor) -> Tensor:
        """Optimise the slopes without rounding margins, then bound with them."""
        bounds, relaxation = crown_bounds(network, region, rounding_unit(weights.dtype))
        found = lower_bound(network, region, bounds, network.output, weights, relaxation.unit, relaxation.lines)
        if not relaxation.lines:
            return found
        inputs = {number: bounds[network.steps[number - 1].inputs[0]] for number in relaxation.lines}
        ranges = {number: slope_range(network.curve(number), interval) for number, interval in inputs.items()}

        def bound(slopes: Mapping[int, Slopes], relaxation: Relaxation) -> Tensor:
            lines = {number: relaxation.of(number, inputs[number], pair) for number, pair in slopes.items()}
            return lower_bound(network, region, bounds, network.output, weights, relaxation.unit, lines)

        search = SlopeSearch(relaxation.lines, ranges, len(weights), self.steps)
        with torch.enable_grad():
            slopes = search.run(lambda slopes: bound(slopes, Relaxation(network, 0.0)))
        return torch.maximum(found, bound(slopes, relaxation))
