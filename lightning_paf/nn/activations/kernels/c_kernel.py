"""Kernels in C for CPUs: one pass over memory for a formula and its derivatives."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.kernels.base import (
    Kernel,
    block_sums,
    c_function,
    detached_float32,
    match_layout,
    sum_blocks,
)
from lightning_paf.nn.activations.kernels.c_source import c_source
from lightning_paf.nn.activations.kernels.compiler import load


class CKernel(Kernel):
    """A formula as compiled C loops, for dense CPU tensors in float32.

    Args:
        formula: Formula with scalar parameters.

    Raises:
        CompilerError: There is no C compiler.
        UntranslatableError: The formula cannot be translated to C.
    """

    def __init__(self, formula: Formula) -> None:
        library, parameters = load(c_source(formula)), len(formula.parameter_slopes)
        self._forward = c_function(library, "forward", 2 + parameters)
        self._backward = c_function(library, "backward", 3 + parameters)
        self._backward_all = c_function(library, "backward_all", 4 + parameters)

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Compute f(x)."""
        output = torch.empty_like(x)
        self._forward(x, *detached_float32(parameters), output, x.numel())
        return output

    def backward(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Compute grad * df/dx."""
        output = torch.empty_like(x)
        self._backward(match_layout(grad, x), x, *detached_float32(parameters), output, x.numel())
        return output

    def backward_all(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute grad * df/dx, and for each parameter p the sum of grad * df/dp."""
        output, sums = torch.empty_like(x), block_sums(x, len(parameters))
        self._backward_all(match_layout(grad, x), x, *detached_float32(parameters), output, sums, x.numel())
        return output, sum_blocks(sums)
