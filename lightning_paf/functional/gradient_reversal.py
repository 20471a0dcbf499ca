"""Gradient reversal layer (Ganin and Lempitsky, 2015)."""

import math
from typing import Any

import torch
from torch import Tensor


def reverse_gradient(x: Tensor, factor: Tensor | float) -> Tensor:
    """Identity whose backward pass multiplies the gradient by `-factor`.

    `factor` is a scalar; 0 blocks the gradient.
    """
    reversed_: Tensor = _Reversal.apply(x, factor)
    return reversed_


def reversal_schedule(progress: float) -> float:
    """Factor `2 / (1 + exp(-10 progress)) - 1` of Ganin et al. (2016)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None
