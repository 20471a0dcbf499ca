"""Layers with bounds for modules of PyTorch and of this package."""

from functools import singledispatch

from torch import Tensor, nn

from lightning_paf.nn.bounds.curve import curve_of
from lightning_paf.nn.bounds.layers.affine import Conv, Linear, Scale
from lightning_paf.nn.bounds.layers.base import Layer
from lightning_paf.nn.bounds.layers.monotone import Monotone, adaptive_average, average
from lightning_paf.nn.bounds.layers.pointwise import Pointwise


@singledispatch
def layer_of(module: nn.Module, sample: Tensor) -> Layer | None:
    """The layer of a module; None if it has no bounds.

    Args:
        module: A module that is no container, in eval mode.
        sample: An input (1, ...).
    """
    # A subclass of the user could compute something else.
    known = type(module).forward.__module__.startswith(("torch.nn.", "lightning_paf."))
    curve = curve_of(module, sample.dim()) if known else None
    return None if curve is None else Pointwise(curve)


@layer_of.register
def _(module: nn.Linear, sample: Tensor) -> Layer:
    return Linear(module.weight, module.bias)


@layer_of.register
def _(module: nn.Conv2d, sample: Tensor) -> Layer | None:
    padding = _padding(module)
    if module.padding_mode != "zeros" or padding is None:
        return None
    return Conv(module.weight, module.bias, module.stride, padding, module.dilation, module.groups)


def _padding(module: nn.Conv2d) -> tuple[int, ...] | None:
    """Zeros on both sides of each dimension; None if `same` needs more on one side."""
    if not isinstance(module.padding, str):
        return module.padding
    same = module.padding == "same"
    total = [same * width * (size - 1) for width, size in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(sides % 2 for sides in total) else tuple(sides // 2 for sides in total)


@layer_of.register(nn.BatchNorm2d)
@layer_of.register(nn.SyncBatchNorm)
def _(module: nn.modules.batchnorm._BatchNorm, sample: Tensor) -> Layer | None:
    return None if module.running_mean is None else Scale.of_norm(module)


@layer_of.register
def _(module: nn.AvgPool2d, sample: Tensor) -> Layer:
    return average(module, module.kernel_size)


@layer_of.register
def _(module: nn.AdaptiveAvgPool2d, sample: Tensor) -> Layer:
    return adaptive_average(module, sample)


@layer_of.register
def _(module: nn.Flatten, sample: Tensor) -> Layer | None:
    return Monotone(module) if module.start_dim == 1 else None


@layer_of.register(nn.Identity)
@layer_of.register(nn.Dropout)
@layer_of.register(nn.Dropout2d)
def _(module: nn.Module, sample: Tensor) -> Layer:
    return Monotone(lambda batch: batch)  # that of eval mode
