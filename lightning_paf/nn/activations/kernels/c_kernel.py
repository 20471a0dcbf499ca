"""One pass over memory for a formula and its derivatives, on the CPU."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.kernels.c_source import c_source
from lightning_paf.nn.activations.kernels.calls import block_sums, call, function, like, singles
from lightning_paf.nn.activations.kernels.compiler import load


class CKernel:
    """A formula as compiled C loops, for dense CPU tensors in float32.

    Args:
        formula: What to compute; its parameters are single numbers.

    Raises:
        CompilerError: Nothing to compile with.
        UntranslatableError: The formula has no C form.
    """

    slope_is_free: ClassVar[bool] = False

    def __init__(self, formula: Formula) -> None:
        library, parameters = load(c_source(formula)), len(formula.parameter_slopes)
        self._forward = function(library, "forward", 2 + parameters)
        self._backward = function(library, "backward", 3 + parameters)
        self._backward_all = function(library, "backward_all", 4 + parameters)

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """f(x), with the layout of x."""
        output = torch.empty_like(x)
        call(self._forward, x, *singles(parameters), output, x.numel())
        return output

    def forward_and_slope(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """f(x) and df/dx, both with the layout of x, in two passes."""
        return self.forward(x, parameters), self.backward(torch.ones_like(x), x, parameters)

    def backward(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The gradient by x: grad * df/dx, with the layout of x."""
        output = torch.empty_like(x)
        call(self._backward, like(grad, x), x, *singles(parameters), output, x.numel())
        return output

    def backward_all(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The same, and the sums of grad * df/dp, each a number in float32."""
        output, sums = torch.empty_like(x), block_sums(x, len(parameters))
        call(self._backward_all, like(grad, x), x, *singles(parameters), output, sums, x.numel())
        return output, list(sums.sum(0, dtype=torch.float64).float().unbind())
