"""Autograd functions that evaluate a `Formula` and its explicit derivatives."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.kernels import Kernel


class Pointwise(torch.autograd.Function):
    """Apply a `Formula` by torch expressions.

    Compared with autograd through `value`, explicit derivatives
      * keep only x for the backward pass, instead of three to five intermediates for every layer;
      * avoid products of an overflow and an underflow (inf * 0 = NaN);
      * sum the derivatives by parameters in float32, without keeping a copy of x for them.
    The backward pass consists of torch expressions too, so second derivatives work.

    Results beyond the range of the dtype (a slope of 9 at x = 60000 in float16) saturate instead of becoming inf.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(formula: Formula, x: Tensor, *parameters: Tensor) -> Tensor:
        """Evaluate, with the shape and dtype of x."""
        value = formula.value(x, *_as_dtype(parameters, x.dtype)).to(x.dtype)  # autocast can compute it in float32
        limits = torch.finfo(x.dtype)
        # torch.compile of torch 2.11 drops the gradients of an output that was modified in place.
        clamp = value.clamp if torch.compiler.is_compiling() else value.clamp_
        return clamp(limits.min, limits.max)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep x and the parameters only."""
        ctx.formula = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the required gradients by x and the parameters; in an attack, by x only."""
        return None, *_gradients(ctx.formula, grads[0], ctx.saved_tensors, ctx.needs_input_grad[1:])


class FusedPointwise(torch.autograd.Function):
    """Apply a `Formula` by a kernel, with one pass forward and one backward.

    The backward pass includes the sums for the parameters. Like `Pointwise`, this function keeps x and the parameters,
    and with `create_graph` it uses the same torch expressions. If no parameter requires a gradient, as in an attack, it
    keeps the slope instead of x, provided that the kernel computes both at once.

    Raises:
        RuntimeError: In a backward pass with `create_graph` if only the slope was kept.
    """

    @staticmethod
    def forward(ctx: Any, formula: Formula, kernel: Kernel, x: Tensor, *parameters: Tensor) -> Tensor:
        """Evaluate, with the shape, layout and dtype of x."""
        ctx.formula, ctx.kernel = formula, kernel
        needs_x, *needed = ctx.needs_input_grad[2:]
        both = kernel.forward_and_slope(x, parameters) if needs_x and not any(needed) else None
        ctx.keeps_slope = both is not None
        if both is not None:
            value, slope = both
            ctx.save_for_backward(slope)
            return value
        ctx.save_for_backward(x, *parameters)
        return kernel.forward(x, parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the required gradients by x and the parameters."""
        _, _, needs_x, *needed = ctx.needs_input_grad
        none = [None] * len(needed)
        (grad,), kernel = grads, ctx.kernel
        if ctx.keeps_slope:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    "A second derivative requires the inputs of activations, but a frozen network in bfloat16 keeps "
                    "only their slopes. Pass --model.speed.fused false."
                )
            (slope,) = ctx.saved_tensors
            return None, None, grad * slope, *none
        x, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph=True
            return None, None, *_gradients(ctx.formula, grad, (x, *parameters), (needs_x, *needed))
        if not any(needed):
            return None, None, kernel.backward(grad, x, parameters), *none
        by_x, sums = kernel.backward_all(grad, x, parameters)
        by_parameter = [
            s.to(parameter.dtype).reshape(parameter.shape) if need else None
            for s, parameter, need in zip(sums, parameters, needed, strict=True)
        ]
        return None, None, by_x if needs_x else None, *by_parameter


def _gradients(
    formula: Formula, grad: Tensor, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients by x and the parameters, in the order of `saved`.

    None where `needs` is False.
    """
    x, *parameters = saved
    needs_x, *needed = needs
    grad_x = (grad * formula.slope(x, *_as_dtype(parameters, x.dtype))).to(x.dtype) if needs_x else None
    wide = torch.promote_types(x.dtype, torch.float32)
    wide_inputs = (x.to(wide), *_as_dtype(parameters, wide)) if any(needed) else ()
    by_parameter = [
        (grad.to(wide) * slope(*wide_inputs)).sum_to_size(parameter.shape).to(parameter.dtype) if need else None
        for slope, parameter, need in zip(formula.parameter_slopes, parameters, needed, strict=True)
    ]
    return grad_x, *by_parameter


def _as_dtype(parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Cast parameters to `dtype`, within its range.

    A float32 alpha would promote a bfloat16 x and double the memory of activations.
    """
    limits = torch.finfo(dtype)
    return [parameter.to(dtype).clamp(limits.min, limits.max) for parameter in parameters]
