"""What kernels do before they call compiled code with tensors."""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_BLOCK = 8192  # BLOCK of the C sources

CFunction = Callable[..., None]


def function(library: ctypes.CDLL, name: str, pointers: int, numbers: int = 1) -> CFunction:
    """A function of a library that takes pointers and then integers, and returns nothing."""
    found = library[name]
    found.argtypes = [*[ctypes.c_void_p] * pointers, *[ctypes.c_int64] * numbers]
    found.restype = None
    return found


def call(function: CFunction, *arguments: Tensor | int) -> None:
    """Call it, with the memory of the tensors."""
    function(*(argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments))


def like(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient in the memory layout of x: the loops go through both in the order of memory."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)


def singles(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Parameters in float32, in which kernels compute, without their graph."""
    return [parameter.detach().float() for parameter in parameters]


def block_sums(x: Tensor, parameters: int) -> Tensor:
    """Memory (blocks, parameters) for the sums over each block; added up in order, whatever the number of threads."""
    return torch.empty(-(-x.numel() // _BLOCK), parameters)
