"""Quantiles of gamma distributions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_DIFFERENCE = 1e-4  # relative; of the shape, for its derivative


def gamma_quantiles(concentration: Tensor, rate: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of gamma distributions, with first derivatives by both parameters.

    Args:
        concentration: Shape parameters (N,), > 0.
        rate: Rates (N,), > 0.
        levels: S probabilities in (0, 1).

    Returns:
        (S, N), >= 0. They can underflow to 0 for concentrations far below 1.
    """
    standard: Tensor = _StandardQuantiles.apply(concentration, levels)
    return standard / rate


class _StandardQuantiles(torch.autograd.Function):
    """Quantiles (S, N) for rate 1, computed by scipy in float64."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, levels: Sequence[float]) -> Tensor:
        from scipy.special import gammaincinv

        shape, level = concentration.double().cpu().numpy(), np.asarray(levels)[:, None]
        low, middle, high = (gammaincinv(shape * (1 + h), level) for h in (-_DIFFERENCE, 0, _DIFFERENCE))
        ctx.save_for_backward(torch.from_numpy((high - low) / (2 * _DIFFERENCE * shape)).to(concentration))
        return torch.from_numpy(middle).to(concentration)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return (gradient * slope).sum(0), None
