"""Lower bounds of margins between logits, by method."""

import torch
from torch import Tensor, nn

from lightning_paf.nn.bounds.crown import crown_bounds
from lightning_paf.nn.bounds.interval import Interval, rounding_unit
from lightning_paf.nn.bounds.network import Network
from lightning_paf.nn.bounds.propagation import lower_bound, propagate
from lightning_paf.nn.bounds.region import Box, Region
from lightning_paf.nn.modes import full_precision


def interval_bounds(model: nn.Module, lower: Tensor, upper: Tensor) -> list[Interval]:
    """Bounds of the inputs of every activation, in order, by interval arithmetic; see `layer_bounds`."""
    with torch.no_grad(), full_precision():
        network = Network(model, lower[:1])
        bounds = propagate(network, Box(lower, upper), rounding_unit(lower.dtype))
    return _inputs(network, bounds)


def layer_bounds(model: nn.Module, lower: Tensor, upper: Tensor) -> list[Interval]:
    """Bounds of the inputs of every activation, in order, by CROWN.

    Args:
        model: Maps images (N, C, H, W) to logits (N, classes).
        lower: Lower bounds of the pixels (N, C, H, W).
        upper: Upper bounds of the pixels.

    Returns:
        For each activation, lower and upper bounds of its inputs (N, ...).

    Raises:
        ValueError: A layer of the model has no bounds.
    """
    with torch.no_grad(), full_precision():
        network = Network(model, lower[:1])
        bounds, _ = crown_bounds(network, Box(lower, upper), rounding_unit(lower.dtype))
    return _inputs(network, bounds)


def crown(model: nn.Module, region: Region, weights: Tensor) -> Tensor:
    """Lower bounds of weighted sums of logits by CROWN.

    Args:
        model: Maps images (N, C, H, W) to logits (N, classes).
        region: Set of images around each of N images.
        weights: (K, N or 1, classes).

    Returns:
        (K, N), float64.

    Raises:
        ValueError: A layer of the model has no bounds.
    """
    with torch.no_grad(), full_precision():
        unit = rounding_unit(weights.dtype)
        network = Network(model, region.interval().lower[:1])
        bounds, relaxation = crown_bounds(network, region, unit)
        return lower_bound(network, region, bounds, network.output, weights, unit, relaxation.lines)


def _inputs(network: Network, bounds: list[Interval]) -> list[Interval]:
    return [bounds[network.steps[number - 1].inputs[0]] for number in network.activations]
