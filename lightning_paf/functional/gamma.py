"""Quantiles of gamma distributions."""

import torch
from torch import Tensor

_DIFFERENCE = 1e-3  # relative change of the concentration, for derivatives


def gamma_quantiles(concentration: Tensor, rate: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of gamma distributions, with first and second derivatives.

    The derivatives are those by both parameters; by the concentration, they are differences in float64.

    Args:
        concentration: Shape parameters (N,), > 0.
        rate: Rates (N,), > 0.
        levels: Probabilities (S, N) or (S, 1), in [0, 1).

    Returns:
        (S, N), >= 0. They can underflow to 0 for concentrations far below 1.
    """
    from scipy.special import gammaincinv

    shape, level = (value.detach().double().cpu().numpy() for value in (concentration, levels))
    step = _DIFFERENCE * shape
    low, middle, high = (gammaincinv(shape + change, level) for change in (-step, 0 * step, step))
    derivatives = (middle, (high - low) / (2 * step), (high - 2 * middle + low) / (2 * step**2))
    value, slope, curvature = (torch.from_numpy(part).to(concentration) for part in derivatives)
    change = concentration - concentration.detach()
    return (value + (slope + curvature * change) * change) / rate
