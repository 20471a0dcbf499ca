"""Chains of affine layers and ReLU as matrices, and their bounds."""

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor, nn

from lightning_paf.nn.classifier import Classifier
from lightning_paf.types import Forward

_AFFINE = (nn.AvgPool2d, nn.BatchNorm2d, nn.Conv2d, nn.Dropout, nn.Flatten, nn.Identity, nn.Linear)
_ROUNDING = 1e-9  # relative widening of bounds in float64

Layer = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out,) of an affine map."""
Box = tuple[Tensor, Tensor]
"""Lower and upper ends (n,)."""


def affine_layers(model: nn.Module, image: Tensor) -> list[Layer]:
    """Affine maps before, between and after the ReLUs of a chain.

    Args:
        model: `nn.Sequential` of affine layers and ReLU, or `Classifier` with one; in eval mode.
        image: Example of an input (1, C, H, W), whose pixels are the first dimensions.

    Raises:
        ValueError: A layer that is neither affine nor ReLU.
    """
    parts: list[list[Forward]] = [[]]
    for module in _steps(model):
        if isinstance(module, nn.ReLU):
            parts.append([])
        else:
            parts[-1].append(module)
    layers, at = list[Layer](), torch.zeros_like(image)
    for part in parts:
        basis = torch.eye(at.numel(), dtype=at.dtype).view(-1, *at.shape[1:])
        bias, columns = (reduce(lambda x, step: step(x), part, start) for start in (torch.zeros_like(at), basis))
        layers.append(((columns - bias).flatten(1).T, bias.flatten()))
        at = bias
    return layers


def preactivation_bounds(layers: list[Layer], box: Box) -> list[Box]:
    """Bounds of the inputs of each ReLU, by `lower_bound`."""
    bounds: list[Box] = []
    for weight, bias in layers:
        low = lower_bound((weight, bias), layers[: len(bounds)], bounds, box)
        high = -lower_bound((-weight, -bias), layers[: len(bounds)], bounds, box)
        bounds.append((low - _ROUNDING * (1 + low.abs()), high + _ROUNDING * (1 + high.abs())))
    return bounds


def lower_bound(last: Layer, layers: list[Layer], bounds: list[Box], box: Box) -> Tensor:
    """Lower bounds (out,) of an affine map, by CROWN (Zhang et al. 2018)."""
    weight, bias = last
    for (inner, shift), (low, high) in zip(reversed(layers), reversed(bounds), strict=True):
        above = high.clamp_min(0) / (high.clamp_min(0) - low.clamp_max(0)).clamp_min(1e-300)
        below, negative = (high > -low).to(low.dtype), weight.clamp_max(0)
        bias = bias - negative @ (above * low.clamp_max(0))
        weight = weight.clamp_min(0) * below + negative * above
        weight, bias = weight @ inner, bias + weight @ shift
    return bias + weight.clamp_min(0) @ box[0] + weight.clamp_max(0) @ box[1]


def _steps(model: nn.Module) -> Iterator[Forward]:
    """Layers of a chain, in order."""
    if isinstance(model, Classifier):
        yield lambda x: (x - model.mean) / model.std
        yield from _steps(model.net)
    elif isinstance(model, nn.Sequential):
        for layer in model:
            yield from _steps(layer)
    elif isinstance(model, (*_AFFINE, nn.ReLU)):
        yield model
    else:
        raise ValueError(
            f"Layers must be affine or ReLU, in a chain, for an exact decision, got {type(model).__name__}. Pass an "
            "nn.Sequential of such layers."
        )
