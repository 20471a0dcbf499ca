"""Kernels that compute a `Formula` and its derivatives in one pass over memory.

The formula is the reference of their tests, and the fallback where there is no kernel.
"""

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.kernels.base import Kernel
from lightning_paf.nn.activations.kernels.c_kernel import CKernel
from lightning_paf.nn.activations.kernels.compiled_kernel import CompiledKernel
from lightning_paf.nn.activations.kernels.table_kernel import TableKernel
from lightning_paf.nn.equivalence import generators_kept
from lightning_paf.utils.terminal import clause

__all__ = ["CKernel", "CompiledKernel", "Kernel", "TableKernel", "kernel_for"]


def kernel_for(formula: Formula, x: Tensor, parameters: Sequence[Tensor]) -> Kernel | None:
    """Return a kernel for these tensors; None if there is none.

    There is none for parameters per channel, float64, tensors that are not dense, or without a compiler.

    The first call for a device and dtype compiles the kernel (half a second on a CPU, some ten seconds on CUDA) and
    compares it with the formula. A failure is reported by one warning.
    """
    dense = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    if not dense or x.numel() == 0 or any(parameter.numel() != 1 for parameter in parameters):
        return None
    known = (torch.float32, torch.bfloat16) + ((torch.float16,) if x.device.type != "cpu" else ())
    return _checked_kernel(formula, x.device, x.dtype) if x.dtype in known else None


@cache
def _checked_kernel(formula: Formula, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    try:
        kernel = _made(formula, device, dtype)
        with generators_kept(nn.Module(), device) as used:
            _compare(kernel, formula, device, dtype)
            if used():
                raise ArithmeticError("a formula that uses a random generator has no kernel")
    except Exception as error:  # compilers can raise anything, and the formula is a fallback
        warnings.warn(
            f"Parametric activations run as several torch operations each, which is slower: {clause(error)}. "
            "Install a C compiler, or pass --model.speed.fused false to disable this warning.",
            stacklevel=2,
        )
        return None
    return kernel


def _made(formula: Formula, device: torch.device, dtype: torch.dtype) -> Kernel:
    if device.type != "cpu":
        return CompiledKernel(formula)
    return TableKernel(formula) if dtype == torch.bfloat16 else CKernel(formula)


@torch.no_grad()
def _compare(kernel: Kernel, formula: Formula, device: torch.device, dtype: torch.dtype) -> None:
    """Compare a kernel with its formula in double precision, at common inputs.

    Raises:
        ArithmeticError: They differ by more than rounding.
    """
    x = torch.linspace(-20, 20, 1001, device=device).to(dtype)
    ones = torch.ones_like(x)
    parameters = [torch.full((), 0.5 + 0.25 * i, device=device) for i in range(len(formula.parameter_slopes))]
    exact = (x.double(), *(parameter.double() for parameter in parameters))
    value, slope = (f(*exact).expand(x.shape) for f in (formula.value, formula.slope))
    terms = [f(*exact).expand(x.shape) for f in formula.parameter_slopes]
    by_x, sums = kernel.backward_all(ones, x, parameters)
    values, slopes = [kernel.forward(x, parameters)], [by_x, kernel.backward(ones, x, parameters)]
    if (both := kernel.forward_and_slope(x, parameters)) is not None:
        values, slopes = [*values, both[0]], [*slopes, both[1]]
    pairs = [(found, value, value.abs() + 1) for found in values]
    pairs += [(found, slope, slope.abs() + 1) for found in slopes]
    pairs += [(found, t.sum(), t.abs().sum() + 1) for found, t in zip(sums, terms, strict=True)]
    for found, expected, scale in pairs:
        if not bool(((found.double() - expected).abs() <= 16 * torch.finfo(dtype).eps * scale).all()):
            raise ArithmeticError("a compiled kernel differs from its formula by more than rounding")
