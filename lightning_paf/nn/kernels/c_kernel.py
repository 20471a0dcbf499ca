"""One pass over memory for a formula and its derivatives, on the CPU."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_paf.nn.formula import Formula
from lightning_paf.nn.kernels.c_source import c_source
from lightning_paf.nn.kernels.compiler import load

_BLOCK = 8192  # of elementwise.h


class CKernel:
    """A formula as compiled C loops, for dense CPU tensors in float32 or bfloat16 (computed in float32).

    Args:
        formula: What to compute; its parameters are single numbers.
        dtype: `torch.float32` or `torch.bfloat16`.

    Raises:
        CompilerError: Nothing to compile with.
        UntranslatableError: The formula has no C form.
    """

    def __init__(self, formula: Formula, dtype: torch.dtype) -> None:
        library = load(c_source(formula, low_precision=dtype == torch.bfloat16))
        parameters = len(formula.parameter_slopes)
        self._forward = _function(library, "forward", 2 + parameters)
        self._backward = _function(library, "backward", 3 + parameters)
        self._backward_all = _function(library, "backward_all", 4 + parameters)

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """f(x), with the layout of x."""
        output = torch.empty_like(x)
        self._call(self._forward, x.numel(), x, *_singles(parameters), output)
        return output

    def backward(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The gradient by x: grad * df/dx, with the layout of x."""
        output = torch.empty_like(x)
        self._call(self._backward, x.numel(), _like(grad, x), x, *_singles(parameters), output)
        return output

    def backward_all(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The same, and the sums of grad * df/dp, each a number in float32."""
        output = torch.empty_like(x)
        sums = torch.empty(-(-x.numel() // _BLOCK), len(parameters))
        self._call(self._backward_all, x.numel(), _like(grad, x), x, *_singles(parameters), output, sums)
        return output, list(sums.sum(0, dtype=torch.float64).float().unbind())

    @staticmethod
    def _call(function: "ctypes._NamedFuncPointer", count: int, *tensors: Tensor) -> None:
        function(*(tensor.data_ptr() for tensor in tensors), count)


def _function(library: ctypes.CDLL, name: str, pointers: int) -> "ctypes._NamedFuncPointer":
    function = library[name]
    function.argtypes = [*[ctypes.c_void_p] * pointers, ctypes.c_int64]
    function.restype = None
    return function


def _like(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient in the memory layout of x: the loops go through both in the order of memory."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)


def _singles(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().float() for parameter in parameters]
