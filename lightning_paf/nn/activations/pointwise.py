"""Scalar functions with scalar parameters, evaluated by value and by hand-written derivative."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Formula:
    """A function f(x; p1, p2, ...) and its first derivatives, as plain differentiable torch expressions.

    Every callable takes `(x, p1, p2, ...)`, where the parameters broadcast against x and have its dtype.

    Attributes:
        value: f.
        slope: df/dx.
        parameter_slopes: df/dp, one for each parameter.
    """

    value: Callable[..., Tensor]
    slope: Callable[..., Tensor]
    parameter_slopes: tuple[Callable[..., Tensor], ...]


class Pointwise(torch.autograd.Function):
    """Apply a `Formula`.

    Autograd through `value` would do, but not safely and not cheaply. With the derivatives written out
      * only x is kept for the backward pass, instead of three to five intermediates for every layer;
      * no derivative is a product of an overflow and an underflow (inf * 0 = NaN);
      * the derivative by a parameter is computed and summed in float32, without a copy of x being kept for it.
    The backward pass consists of torch expressions again, so second derivatives work.

    Results beyond the range of the dtype (a slope of 9 at x = 60000 in float16) saturate instead of becoming inf.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(formula: Formula, x: Tensor, *parameters: Tensor) -> Tensor:
        """Evaluate; the result has shape and dtype of x."""
        value = formula.value(x, *_as_dtype(parameters, x.dtype))
        limits = torch.finfo(x.dtype)
        return value.to(x.dtype).clamp_(limits.min, limits.max)  # autocast computes some functions in float32

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep x and the parameters, nothing else."""
        ctx.formula = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by x and by those parameters that want one; an attack, which wants only x, pays for only x."""
        (grad,) = grads
        formula: Formula = ctx.formula
        x, *parameters = ctx.saved_tensors
        _, wants_x, *wanted = ctx.needs_input_grad
        grad_x = (grad * formula.slope(x, *_as_dtype(parameters, x.dtype))).to(x.dtype) if wants_x else None
        wide = torch.promote_types(x.dtype, torch.float32)
        wide_inputs = (x.to(wide), *_as_dtype(parameters, wide)) if any(wanted) else ()
        by_parameter = [
            (grad.to(wide) * slope(*wide_inputs)).sum_to_size(parameter.shape).to(parameter.dtype) if wants else None
            for slope, parameter, wants in zip(formula.parameter_slopes, parameters, wanted, strict=True)
        ]
        return None, grad_x, *by_parameter


def _as_dtype(parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Cast parameters; a float32 alpha times a bfloat16 x would be promoted, and double the memory of activations."""
    limits = torch.finfo(dtype)
    return [parameter.to(dtype).clamp(limits.min, limits.max) for parameter in parameters]
