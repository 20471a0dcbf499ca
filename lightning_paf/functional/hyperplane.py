"""Projections onto the part of a hyperplane that lies in the box [0, 1]^D, without sorting."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_paf.types import Norm

Shift = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(points, normal, excess) -> shifts`, see `shift_linf`."""

_FULL = 1e30
"""A level above all limits."""

_CPU_STEPS, _DEVICE_STEPS = 40, 16


@torch.no_grad()
def shift_linf(points: Tensor, normal: Tensor, excess: Tensor) -> Tensor:
    """The smallest shifts, in the l-infinity norm, that move points of the box onto a hyperplane within the box.

    All coordinates move by one common amount, except those that reach the end of their range before (Croce & Hein
    2020, "Minimally distorted adversarial examples", appendix on projections). Where the hyperplane does not meet the
    box, the shift leads to the corner nearest to it; where the normal is zero, nowhere.

    Args:
        points: (N, K, D) in [0, 1]: K points for each hyperplane.
        normal: (N, D) the normals w.
        excess: (N, K) the values of `<w, point> - b`, which the shift is to bring to zero. Given rather than b, because
            the caller knows it without the rounding of a long sum.

    Returns:
        (N, K, D).
    """
    weights, total, direction, room = _prepare(points, normal, excess)
    level = _level(room, weights, total)
    return torch.minimum(room, level.unsqueeze(2)).mul_(direction)


@torch.no_grad()
def shift_l2(points: Tensor, normal: Tensor, excess: Tensor) -> Tensor:
    """As `shift_linf` for the l2 norm: coordinates move in proportion to the normal, until their range ends."""
    weights, total, direction, room = _prepare(points, normal, excess)
    limits = room / weights.clamp_min(1 / _FULL).unsqueeze(1)
    level = _level(limits, weights.square(), total)
    return torch.minimum(room, level.unsqueeze(2) * weights.unsqueeze(1)).mul_(direction)


_SHIFTS: Mapping[Norm, Shift] = MappingProxyType({"linf": shift_linf, "l2": shift_l2})


def shift_of(norm: Norm) -> Shift:
    """The projection of a norm.

    Args:
        norm: `linf` or `l2`.

    Raises:
        ValueError: No projection for this norm.
    """
    if norm not in _SHIFTS:
        raise ValueError(f"norm must be one of {', '.join(_SHIFTS)}, got {norm!r}.")
    return _SHIFTS[norm]


def _prepare(points: Tensor, normal: Tensor, excess: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights (N, D) with largest entry 1, the total (N, K) to remove, direction and room of each coordinate (N, K, D).

    The hyperplane is the same after scaling; squares of the gradients of a saturated network would be zero.
    """
    sizes = normal.abs()
    scale = sizes.amax(dim=1, keepdim=True).clamp_min(torch.finfo(normal.dtype).tiny).reciprocal()
    direction = normal.sign().unsqueeze(1) * -excess.sign().unsqueeze(2)
    room = torch.addcmul(direction.clamp_min(0), direction, points, value=-1)  # upwards 1 - point, downwards point
    return sizes * scale, excess.abs() * scale, direction, room


def _level(limits: Tensor, weights: Tensor, total: Tensor) -> Tensor:
    """The level (N, K) up to which to fill every coordinate, at most to its limit, so that the weights sum to `total`.

    The filled sum is a concave, piecewise linear function of the level. Newton's method from 0 climbs monotonely and
    ends on the root, since it is exact once the set of full coordinates is right: after about six steps. Every step
    divides (what is missing) x (the slope) by at least 4. That bounds the steps where a check for convergence would
    synchronise the device.

    Args:
        limits: (N, K, D), at least 0.
        weights: (N, D), at least 0.
        total: (N, K), at least 0.

    Returns:
        (N, K); `_FULL` where the sum of all cannot reach the total.
    """
    on_cpu, smallest, count = limits.is_cpu, torch.finfo(limits.dtype).tiny, limits.shape[1]
    both = limits.new_empty(len(limits), 2 * count, limits.shape[2])  # the fillings, and whether each can rise further
    fillings, can_rise = both[:, :count], both[:, count:]
    row, level = weights.unsqueeze(1), torch.zeros_like(total)
    for _ in range(_CPU_STEPS if on_cpu else _DEVICE_STEPS):
        torch.minimum(limits, level.unsqueeze(2), out=fillings)
        torch.gt(limits, level.unsqueeze(2), out=can_rise)
        sums = torch.bmm(row, both.transpose(1, 2)).squeeze(1)
        filled, slope = sums[:, :count], sums[:, count:]
        higher = ((total - filled).clamp_min(0) / slope.clamp_min(smallest) + level).clamp_max(_FULL)
        if on_cpu and not (higher > level).any():
            break
        level = higher
    return level
