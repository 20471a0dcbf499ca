"""Gradients of functions of depth in the Sobolev space W^{1,2}."""

import math

import torch
from torch import Tensor


def sobolev_gradient(u: Tensor, t_end: float) -> Tensor:
    """Solve v - v'' = u on [0, T] with v'(0) = v'(T) = 0.

    v represents in W^{1,2} the functional that u represents in L2. The solution is the integral of u times the Green's
    function cosh(T - max(s, t)) cosh(min(s, t)) / sinh(T), by the midpoint rule: constants stay, and a cosine of m half
    periods is multiplied by 1 / (1 + (m pi / T)^2), both up to O(h^2).

    Args:
        u: Values (n, ...) on n cells of length T / n.
        t_end: T, > 0.

    Returns:
        v, shaped like u.
    """
    step = t_end / len(u)
    times = (torch.arange(len(u), dtype=torch.float64) + 0.5) * step
    apart, total = (times - times[:, None]).abs(), times + times[:, None]
    # The product of hyperbolic functions as exponentials that do not overflow.
    distances = torch.stack([apart, 2 * t_end - apart, total, 2 * t_end - total])
    kernel = torch.exp(-distances).sum(0) / (-2 * math.expm1(-2 * t_end))
    v: Tensor = torch.tensordot(step * kernel.to(u), u, dims=1)
    return v
