"""Kernels by torch.compile, in Triton on CUDA."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.kernels.base import Kernel, detached_float32, match_layout


class CompiledKernel(Kernel):
    """A formula compiled by torch, for dense tensors on any device.

    It is computed in float32. Tensors are flattened in memory order and have a symbolic size, so that one
    compilation serves all layers.

    Args:
        formula: Formula with scalar parameters.
        backend: Backend of `torch.compile`.
    """

    def __init__(self, formula: Formula, backend: str = "inductor") -> None:
        def forward(x: Tensor, *parameters: Tensor) -> Tensor:
            return _to(formula.value(x.float(), *parameters), x.dtype)

        def backward(grad: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
            return _to(grad.float() * formula.slope(x.float(), *parameters), x.dtype)

        def backward_all(grad: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, list[Tensor]]:
            wide, slopes = x.float(), formula.parameter_slopes
            return backward(grad, x, *parameters), [(grad.float() * s(wide, *parameters)).sum() for s in slopes]

        self._forward = torch.compile(forward, dynamic=True, fullgraph=True, backend=backend)
        self._backward = torch.compile(backward, dynamic=True, fullgraph=True, backend=backend)
        self._backward_all = torch.compile(backward_all, dynamic=True, fullgraph=True, backend=backend)

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Compute f(x)."""
        return _shaped(self._forward(_flat(x), *detached_float32(parameters)), x)

    def backward(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Compute grad * df/dx."""
        return _shaped(self._backward(_flat(match_layout(grad, x)), _flat(x), *detached_float32(parameters)), x)

    def backward_all(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute grad * df/dx, and for each parameter p the sum of grad * df/dp."""
        by_x, sums = self._backward_all(_flat(match_layout(grad, x)), _flat(x), *detached_float32(parameters))
        return _shaped(by_x, x), sums


def _to(value: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.finfo(dtype)
    return value.clamp(limits.min, limits.max).to(dtype)


def _flat(x: Tensor) -> Tensor:
    """View all elements (numel,) in memory order."""
    return x.detach().as_strided((x.numel(),), (1,))


def _shaped(flat: Tensor, x: Tensor) -> Tensor:
    return flat.as_strided(x.shape, x.stride())
