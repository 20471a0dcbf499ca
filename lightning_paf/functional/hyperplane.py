"""Projections onto the intersection of a hyperplane and the box [0, 1]^D."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_paf.types import Norm

Shift = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(points, normal, excess) -> shifts`; see `shift_linf`."""

_FULL = 1e30
"""A level above all limits."""

_CPU_STEPS, _DEVICE_STEPS = 40, 16


@torch.no_grad()
def shift_linf(points: Tensor, normal: Tensor, excess: Tensor) -> Tensor:
    """Smallest l-infinity shifts onto a hyperplane, inside the box.

    All coordinates move by the same amount, except those that reach the end of their range first (Croce & Hein 2020,
    "Minimally distorted adversarial examples", appendix on projections). If the hyperplane does not meet the box, the
    points move to the corner nearest to it. If the normal is zero, they stay.

    Args:
        points: K points for each hyperplane, (N, K, D), in [0, 1].
        normal: Normals w, (N, D).
        excess: `<w, point> - b`, (N, K), which becomes zero. FAB has it without the rounding error of a long sum.

    Returns:
        (N, K, D).
    """
    weights, total, direction, room = _prepare(points, normal, excess)
    level = _level(room, weights, total)
    return torch.minimum(room, level.unsqueeze(2)).mul_(direction)


@torch.no_grad()
def shift_l2(points: Tensor, normal: Tensor, excess: Tensor) -> Tensor:
    """Smallest l2 shifts onto a hyperplane, inside the box; see `shift_linf`.

    Coordinates move in proportion to the normal, up to the end of their range.
    """
    weights, total, direction, room = _prepare(points, normal, excess)
    limits = room / weights.clamp_min(1 / _FULL).unsqueeze(1)
    level = _level(limits, weights.square(), total)
    return torch.minimum(room, level.unsqueeze(2) * weights.unsqueeze(1)).mul_(direction)


_SHIFTS: Mapping[Norm, Shift] = MappingProxyType({"linf": shift_linf, "l2": shift_l2})


def shift_of(norm: Norm) -> Shift:
    """Look up the projection in a norm: `linf` or `l2`.

    Raises:
        ValueError: No projection for this norm.
    """
    if norm not in _SHIFTS:
        raise ValueError(f"norm must be one of {', '.join(_SHIFTS)}, got {norm!r}. Pass norm=linf.")
    return _SHIFTS[norm]


def _prepare(points: Tensor, normal: Tensor, excess: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, total to remove, direction and room of each coordinate.

    Shapes are (N, D), with largest entry 1, (N, K), (N, K, D) and (N, K, D). Scaling does not change the hyperplane,
    but keeps the squares of a saturated network's gradients from underflow.
    """
    sizes = normal.abs()
    scale = sizes.amax(dim=1, keepdim=True).clamp_min(torch.finfo(normal.dtype).tiny).reciprocal()
    direction = normal.sign().unsqueeze(1) * -excess.sign().unsqueeze(2)
    room = torch.addcmul(direction.clamp_min(0), direction, points, value=-1)  # 1 - point upwards, point downwards
    return sizes * scale, excess.abs() * scale, direction, room


def _level(limits: Tensor, weights: Tensor, total: Tensor) -> Tensor:
    """Solve `sum_d weights_d min(limits_d, level) = total` for the level.

    The sum is a concave, piecewise linear function of the level. Newton's method from 0 increases monotonically and
    is exact once the set of coordinates at their limit is right, after about six steps. Every step divides the
    remainder times the slope by at least 4, which bounds the number of steps on devices, where a check for
    convergence would synchronise.

    Args:
        limits: (N, K, D), at least 0.
        weights: (N, D), at least 0.
        total: (N, K), at least 0.

    Returns:
        (N, K); `_FULL` where the sum cannot reach the total.
    """
    on_cpu, smallest, count = limits.is_cpu, torch.finfo(limits.dtype).tiny, limits.shape[1]
    both = limits.new_empty(len(limits), 2 * count, limits.shape[2])  # min(limits, level), and where it can still rise
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
