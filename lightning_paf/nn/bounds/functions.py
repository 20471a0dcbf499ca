"""Layers with bounds for functions and methods of tensors."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nn.bounds.layers.affine import Conv, Linear, Scale
from lightning_paf.nn.bounds.layers.base import Layer
from lightning_paf.nn.bounds.layers.monotone import Addition, Monotone, adaptive_average, average, average_over
from lightning_paf.nn.bounds.modules import layer_of


@dataclass(frozen=True)
class Traced:
    """A tensor that depends on the images.

    Attributes:
        step: Index of the step that computes it.
        sample: Its value for one image (1, ...).
    """

    step: int
    sample: Tensor


Rule = Callable[..., Layer | None]
"""Maps the arguments of a function to its layer; None if it has no bounds.

Tensors that depend on the images are `Traced`.
"""


def _add(x: Any, other: Any) -> Layer | None:
    if isinstance(x, Traced) and isinstance(other, Traced):
        return Addition() if x.sample.shape == other.sample.shape else None
    traced, constant = (x, other) if isinstance(x, Traced) else (other, x)
    return _scale(traced, 1.0, constant)


def _subtract(x: Any, other: Any) -> Layer | None:
    if isinstance(x, Traced):
        return None if isinstance(other, Traced) else _scale(x, 1.0, -other)
    return _scale(other, -1.0, x)


def _multiply(x: Any, other: Any) -> Layer | None:
    if isinstance(x, Traced) and isinstance(other, Traced):
        return None
    return _scale(x, other, 0.0) if isinstance(x, Traced) else _scale(other, x, 0.0)


def _divide(x: Any, other: Any) -> Layer | None:
    return None if isinstance(other, Traced) else _scale(x, 1 / other, 0.0)


def _scale(x: Traced, factor: Any, bias: Any) -> Layer | None:
    factor, bias = (torch.as_tensor(part).to(x.sample) for part in (factor, bias))
    return Scale(factor, bias) if (x.sample * factor + bias).shape == x.sample.shape else None


def _conv(x: Traced, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any) -> Layer | None:
    settings = dict(zip(("stride", "padding", "dilation"), rest, strict=False)) | more
    groups = rest[3] if len(rest) > 3 else settings.pop("groups", 1)
    if isinstance(settings.get("padding"), str):
        return None
    pairs = {name: (value, value) if isinstance(value, int) else tuple(value) for name, value in settings.items()}
    return Conv(weight, bias, groups=groups, **pairs)


def _pad(x: Traced, pad: Any, mode: str = "constant", value: float | None = None) -> Layer | None:
    if mode != "constant" or value:
        return None
    return Monotone(partial(F.pad, pad=tuple(pad)))


def _reshape(function: Callable[..., Tensor]) -> Rule:
    """Reshaping of every image, whatever the size of the batch."""

    def rule(x: Traced, *args: Any, **kwargs: Any) -> Layer | None:
        result = function(x.sample, *args, **kwargs)
        kept = len(result) == 1 and result.numel() == x.sample.numel()
        return Monotone(lambda batch: batch.reshape(len(batch), *result.shape[1:])) if kept else None

    return rule


def _mean(x: Traced, dim: Any = None, keepdim: bool = False) -> Layer | None:
    dims = {d % x.sample.dim() for d in ((dim,) if isinstance(dim, int) else dim or (0,))}
    return None if 0 in dims else average_over(partial(torch.mean, dim=tuple(dims), keepdim=keepdim), x.sample)


def _to(x: Traced, *args: Any, **kwargs: Any) -> Layer | None:
    """The identity; other types round."""
    return Monotone(lambda batch: batch) if x.sample.to(*args, **kwargs).dtype == x.sample.dtype else None


def _as_module(module: nn.Module) -> Rule:
    return lambda x, inplace=False: layer_of(module, x.sample)


FUNCTIONS: Mapping[Callable[..., Any], Rule] = MappingProxyType(
    {
        operator.add: _add,
        operator.iadd: _add,
        torch.add: _add,
        operator.sub: _subtract,
        operator.mul: _multiply,
        operator.truediv: _divide,
        F.relu: _as_module(nn.ReLU()),
        torch.relu: _as_module(nn.ReLU()),
        F.silu: _as_module(nn.SiLU()),
        torch.tanh: _as_module(nn.Tanh()),
        torch.sigmoid: _as_module(nn.Sigmoid()),
        F.conv2d: _conv,
        torch.conv2d: _conv,
        F.linear: lambda x, weight, bias=None: Linear(weight, bias),
        F.pad: _pad,
        F.avg_pool2d: lambda x, kernel_size, *rest, **more: average(
            lambda batch: F.avg_pool2d(batch, kernel_size, *rest, **more), kernel_size
        ),
        F.adaptive_avg_pool2d: lambda x, output_size: adaptive_average(
            partial(F.adaptive_avg_pool2d, output_size=output_size), x.sample
        ),
        torch.flatten: _reshape(torch.flatten),
        torch.reshape: _reshape(torch.reshape),
        torch.mean: _mean,
    }
)
"""The rule of each function with bounds."""

METHODS: Mapping[str, Rule] = MappingProxyType(
    {
        "add": _add,
        "relu": _as_module(nn.ReLU()),
        "flatten": _reshape(torch.flatten),
        "view": _reshape(Tensor.view),
        "reshape": _reshape(torch.reshape),
        "mean": _mean,
        "to": _to,
        "contiguous": lambda x: Monotone(lambda batch: batch),
    }
)
"""The rule of each method with bounds, by its name in the graph."""
