"""Base class of kernels, and calls of compiled code with tensors."""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_BLOCK = 8192  # BLOCK of the C sources

CFunction = Callable[..., None]


class Kernel(ABC):
    """Implementation of a formula for dense tensors of one dtype.

    Parameters are scalars, and results have the memory layout of x.
    """

    @abstractmethod
    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Compute f(x)."""

    def forward_and_slope(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Compute f(x) and df/dx in one pass; None if the kernel has no such pass."""
        return None

    @abstractmethod
    def backward(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Compute grad * df/dx."""

    @abstractmethod
    def backward_all(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute grad * df/dx, and for each parameter p the sum of grad * df/dp.

        The sums are in float32.
        """


def c_function(library: ctypes.CDLL, name: str, pointers: int, numbers: int = 1) -> CFunction:
    """Look up a C function that takes tensors, then integers, and returns nothing."""
    found = library[name]
    found.argtypes = [*[ctypes.c_void_p] * pointers, *[ctypes.c_int64] * numbers]
    found.restype = None

    def call(*arguments: Tensor | int) -> None:
        found(*(argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments))

    return call


def match_layout(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient in the memory layout of x.

    The C loops iterate over both in memory order.
    """
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)


def detached_float32(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Convert parameters to float32, the precision of kernels, without their graph."""
    return [parameter.detach().float() for parameter in parameters]


def block_sums(x: Tensor, parameters: int) -> Tensor:
    """Allocate sums per block, (blocks, parameters).

    They are added in a fixed order, so results do not depend on the number of threads.
    """
    return torch.empty(-(-x.numel() // _BLOCK), parameters)


def sum_blocks(sums: Tensor) -> list[Tensor]:
    """Add up the sums of all blocks, one number in float32 per parameter."""
    return list(sums.sum(0, dtype=torch.float64).float().unbind())
