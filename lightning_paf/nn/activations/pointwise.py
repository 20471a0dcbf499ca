"""Formulas as autograd functions: by hand-written derivatives, as torch expressions or as one kernel."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.kernels import Kernel


class Pointwise(torch.autograd.Function):
    """Apply a `Formula` as it is written.

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
        return None, *_gradients(ctx.formula, grads[0], ctx.saved_tensors, ctx.needs_input_grad[1:])


class FusedPointwise(torch.autograd.Function):
    """Apply a `Formula` by a kernel: one pass forward and one backward, the sums for the parameters included.

    Keeps x and the parameters, like `Pointwise`, whose expressions it uses where a second derivative may follow. While
    no parameter wants a gradient, as in an attack, it keeps the slope instead of x if the kernel has it for nothing.

    Raises:
        RuntimeError: In the backward pass, where a second derivative is asked for and only the slope was kept.
    """

    @staticmethod
    def forward(ctx: Any, formula: Formula, kernel: Kernel, x: Tensor, *parameters: Tensor) -> Tensor:
        """Evaluate; the result has shape, layout and dtype of x."""
        ctx.formula, ctx.kernel = formula, kernel
        wants_x, *wanted = ctx.needs_input_grad[2:]
        ctx.keeps_slope = kernel.slope_is_free and wants_x and not any(wanted)
        if ctx.keeps_slope:
            value, slope = kernel.forward_and_slope(x, parameters)
            ctx.save_for_backward(slope)
            return value
        ctx.save_for_backward(x, *parameters)
        return kernel.forward(x, parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by x and, where any parameter wants one, by all of them."""
        _, _, wants_x, *wanted = ctx.needs_input_grad
        none = [None] * len(wanted)
        if ctx.keeps_slope:
            return None, None, _times_slope(grads[0], *ctx.saved_tensors), *none
        (grad,), kernel = grads, ctx.kernel
        x, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph=True
            return None, None, *_gradients(ctx.formula, grad, (x, *parameters), (wants_x, *wanted))
        if not any(wanted):
            return None, None, kernel.backward(grad, x, parameters), *none
        by_x, sums = kernel.backward_all(grad, x, parameters)
        by_parameter = [
            s.to(parameter.dtype).reshape(parameter.shape) if wants else None
            for s, parameter, wants in zip(sums, parameters, wanted, strict=True)
        ]
        return None, None, by_x if wants_x else None, *by_parameter


def _times_slope(grad: Tensor, slope: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "A second derivative needs the input of an activation, but of a frozen network in bfloat16 only slopes are "
            "kept. Pass --model.speed.fused false."
        )
    return grad * slope


def _gradients(
    formula: Formula, grad: Tensor, saved: Sequence[Tensor], wants: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients by x and the parameters (in this order in `saved`), None where none is wanted."""
    x, *parameters = saved
    wants_x, *wanted = wants
    grad_x = (grad * formula.slope(x, *_as_dtype(parameters, x.dtype))).to(x.dtype) if wants_x else None
    wide = torch.promote_types(x.dtype, torch.float32)
    wide_inputs = (x.to(wide), *_as_dtype(parameters, wide)) if any(wanted) else ()
    by_parameter = [
        (grad.to(wide) * slope(*wide_inputs)).sum_to_size(parameter.shape).to(parameter.dtype) if want else None
        for slope, parameter, want in zip(formula.parameter_slopes, parameters, wanted, strict=True)
    ]
    return grad_x, *by_parameter


def _as_dtype(parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Cast parameters; a float32 alpha times a bfloat16 x would be promoted, and double the memory of activations."""
    limits = torch.finfo(dtype)
    return [parameter.to(dtype).clamp(limits.min, limits.max) for parameter in parameters]
