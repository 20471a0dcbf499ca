"""A layer whose gradient points the other way (Ganin and Lempitsky, 2015)."""

import math
from typing import Any

import torch
from torch import Tensor


def reverse_gradient(x: Tensor, factor: Tensor | float) -> Tensor:
    """`x` itself, whose gradient is that of the result times `-factor`.

    What follows is trained to do its work, what comes before is trained to spoil it.

    Args:
        x: Any tensor.
        factor: Scalar; 0 lets no gradient through.
    """
    reversed_: Tensor = _Reversal.apply(x, factor)
    return reversed_


def reversal_schedule(progress: float) -> float:
    """The usual factor over the training, `2 / (1 + exp(-10 progress)) - 1` (Ganin et al., 2016): 0 first, then 1."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None
