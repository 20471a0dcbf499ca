"""Bounds of the inputs of activations."""

import torch
from torch import Tensor, nn

from lightning_paf.nn.bounds.crown import crown_bounds
from lightning_paf.nn.bounds.interval import Interval, rounding_unit
from lightning_paf.nn.bounds.network import Network
from lightning_paf.nn.bounds.propagation import propagate
from lightning_paf.nn.bounds.region import Box
from lightning_paf.nn.modes import full_precision


def interval_bounds(model: nn.Module, lower: Tensor, upper: Tensor) -> list[Interval]:
    """Bounds by interval arithmetic of the inputs of activations; see `layer_bounds`."""
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


def _inputs(network: Network, bounds: list[Interval]) -> list[Interval]:
    return [bounds[network.steps[number - 1].inputs[0]] for number in network.activations]
