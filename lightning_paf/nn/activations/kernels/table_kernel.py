"""Kernels by look-up table for bfloat16, which has only 65,536 numbers."""

from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files

import torch
from torch import Tensor

from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.kernels.base import Kernel, block_sums, c_function, match_layout, sum_blocks
from lightning_paf.nn.activations.kernels.compiler import load

_MOST_TABLES = 128  # half a megabyte each; a network has one activation, or some dozens


class TableKernel(Kernel):
    """A formula for dense CPU tensors in bfloat16, tabulated in float32.

    A look-up costs one pass over memory, whatever the formula. A change of the parameters, once per training step,
    needs new tables, which takes a thousandth of the step.

    Args:
        formula: Formula with scalar parameters.

    Raises:
        CompilerError: There is no C compiler.
    """

    def __init__(self, formula: Formula) -> None:
        library = load(files("lightning_paf.nn.activations.kernels").joinpath("table.c").read_text())
        self._formula = formula
        self._forward = c_function(library, "forward", pointers=3)
        self._forward_and_slope = c_function(library, "forward_and_slope", pointers=4)
        self._backward = c_function(library, "backward", pointers=4)
        self._parameter_sums = c_function(library, "parameter_sums", pointers=4, numbers=2)
        self._tables: dict[tuple[float, ...], _Tables] = {}

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Compute f(x)."""
        output = torch.empty_like(x)
        self._forward(x, self._tables_for(parameters).results, output, x.numel())
        return output

    def forward_and_slope(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute f(x) and df/dx."""
        output, slope = torch.empty_like(x), torch.empty_like(x)
        self._forward_and_slope(x, self._tables_for(parameters).results, output, slope, x.numel())
        return output, slope

    def backward(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Compute grad * df/dx."""
        output = torch.empty_like(x)
        self._backward(match_layout(grad, x), x, self._tables_for(parameters).slopes, output, x.numel())
        return output

    def backward_all(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute grad * df/dx, and for each parameter p the sum of grad * df/dp."""
        grad, sums = match_layout(grad, x), block_sums(x, len(parameters))
        slopes = self._tables_for(parameters).parameter_slopes
        self._parameter_sums(grad, x, slopes, sums, len(parameters), x.numel())
        return self.backward(grad, x, parameters), sum_blocks(sums)

    def _tables_for(self, parameters: Sequence[Tensor]) -> "_Tables":
        key = tuple(parameter.item() for parameter in parameters)
        if key not in self._tables:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            self._tables[key] = _Tables(self._formula, key)
        return self._tables[key]


class _Tables:
    """Results for all numbers in the order of their bits, at fixed parameters."""

    def __init__(self, formula: Formula, parameters: tuple[float, ...]) -> None:
        self._formula = formula
        self._parameters = [torch.tensor(parameter) for parameter in parameters]

    @cached_property
    def results(self) -> Tensor:
        """Pairs of value and slope in bfloat16."""
        limits = torch.finfo(torch.bfloat16)
        pairs = torch.stack([self._tabulated([self._formula.value])[0], self.slopes[0]], dim=1)
        return pairs.clamp(limits.min, limits.max).bfloat16()

    @cached_property
    def slopes(self) -> Tensor:
        return self._tabulated([self._formula.slope])

    @cached_property
    def parameter_slopes(self) -> Tensor:
        return self._tabulated(self._formula.parameter_slopes)

    @torch.no_grad()
    def _tabulated(self, functions: Sequence[object]) -> Tensor:
        bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
        x = bits.view(torch.bfloat16).float()
        with torch.autocast("cpu", enabled=False):
            return torch.stack([f(x, *self._parameters).expand_as(x) for f in functions])  # type: ignore[operator]
