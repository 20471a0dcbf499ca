"""Chains of affine layers and ReLU as matrices."""

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor, nn

from lightning_paf.nn.classifier import Classifier
from lightning_paf.types import Forward

_AFFINE = (nn.AvgPool2d, nn.BatchNorm2d, nn.Conv2d, nn.Dropout, nn.Flatten, nn.Identity, nn.Linear)

Layer = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out,) of an affine map."""


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
