"""Sums and means over the processes of a training."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over all ranks.

    Args:
        value: Any tensor, of the same shape on all ranks. Not modified.
    """
    if _world_size() == 1:
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value


def mean_over_ranks(values: Sequence[Tensor]) -> list[Tensor]:
    """The means of several tensors over all ranks, in one message.

    Args:
        values: Tensors of one dtype and device, of the same shapes on all ranks. Not modified.
    """
    if _world_size() == 1 or not values:
        return list(values)
    flat = sum_over_ranks(torch.cat([value.flatten() for value in values])) / _world_size()
    parts = torch.split(flat, [value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
