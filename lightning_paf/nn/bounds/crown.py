"""CROWN: bounds of all activations' inputs by backward linear propagation."""

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_paf.nn.bounds.interval import Interval
from lightning_paf.nn.bounds.lines import Lines, Slopes, lines
from lightning_paf.nn.bounds.network import Network
from lightning_paf.nn.bounds.propagation import Bounds, lower_bound, propagate
from lightning_paf.nn.bounds.region import Region

_ELEMENTS = MappingProxyType({"cpu": 2**20, "cuda": 2**26})
"""Elements of the largest tensor in a backward pass, by device.

Small ones stay in the cache of a CPU.
"""
_NEARLY_LINEAR = 1e-5
"""Relative distance of lines below which bounds are not tightened."""


class Relaxation:
    """Lines of the activations of a network, from bounds of their inputs.

    Args:
        network: The network.
        unit: Relative rounding error of one operation; 0 ignores rounding.

    Attributes:
        lines: Lines of each activation, by its number.
    """

    def __init__(self, network: Network, unit: float) -> None:
        self.network, self.unit = network, unit
        self.lines: dict[int, Lines] = {}

    def update(self, bounds: Sequence[Interval]) -> None:
        """Add the lines of all activations whose inputs have bounds."""
        for number in self.network.activations:
            source = self.network.steps[number - 1].inputs[0]
            if number not in self.lines and source < len(bounds):
                self.lines[number] = self.of(number, bounds[source])

    def of(self, number: int, interval: Interval, slopes: Slopes | None = None) -> Lines:
        """Lines of one activation."""
        return lines(self.network.curve(number), interval, self.unit, slopes)


def crown_bounds(network: Network, region: Region, unit: float) -> tuple[Bounds, Relaxation]:
    """Bounds of every step, and lines; CROWN bounds the inputs of activations."""
    relaxation = Relaxation(network, unit)

    def tighten(bounds: Bounds, number: int) -> Interval:
        relaxation.update(bounds[:-1])
        neurons = _nonlinear(network, relaxation, bounds[-1], number)
        return _neuron_bounds(network, region, bounds, number, neurons, relaxation)

    bounds = propagate(network, region, unit, tighten)
    relaxation.update(bounds)
    return bounds, relaxation


def _nonlinear(network: Network, relaxation: Relaxation, interval: Interval, number: int) -> Tensor:
    """Indices of the neurons that an activation bends for some image."""
    bent = torch.zeros(interval.lower[0].numel(), dtype=torch.bool, device=interval.lower.device)
    for activation in network.activations:
        if number in network.steps[activation - 1].inputs:
            found = relaxation.of(activation, interval)
            ends = [(found.upper_slope - found.lower_slope) * x + found.upper - found.lower for x in interval]
            size = found.upper.abs() + found.lower.abs() + found.upper_slope.abs() * interval.magnitude
            bent |= (torch.maximum(*ends) > _NEARLY_LINEAR * size).flatten(1).any(0)
    return bent.nonzero().flatten()


def _neuron_bounds(
    network: Network, region: Region, bounds: Bounds, number: int, neurons: Tensor, relaxation: Relaxation
) -> Interval:
    """Bounds of some neurons of a step by CROWN, and the given ones of all others."""
    low, high = bounds[-1]
    largest = max(interval.lower[0].numel() for interval in bounds)
    rows = max(1, _ELEMENTS[low.device.type] // (2 * largest * len(low)))
    new_low, new_high = low.flatten(1).clone(), high.flatten(1).clone()
    for part in torch.split(neurons, rows):
        weights = low.new_zeros((len(part), low[0].numel()))
        weights[torch.arange(len(part)), part] = 1
        both = torch.cat([weights, -weights]).view(-1, 1, *low.shape[1:])
        found = lower_bound(network, region, bounds, number, both, relaxation.unit, relaxation.lines)
        lower, upper = found[: len(part)].T, -found[len(part) :].T
        new_low[:, part], new_high[:, part] = _outward(lower, low.dtype, -1), _outward(upper, low.dtype, 1)
    return Interval(new_low.view_as(low), new_high.view_as(high))


def _outward(values: Tensor, dtype: torch.dtype, side: int) -> Tensor:
    """Round to `dtype` and then to the next number on a side."""
    rounded = values.to(dtype)
    return torch.nextafter(rounded, torch.full_like(rounded, side * torch.inf))
