"""Directional agreement of two gradients."""

import torch
from torch import Tensor


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine (N,) of the angle between two tensors (N, ...), example by example; 0 where one of them is zero.

    Differentiable also at zero, where the derivative is 0.
    """
    return (_unit(first) * _unit(second)).sum(dim=1)


def _unit(vector: Tensor) -> Tensor:
    """Of length 1 (N, D), or zero."""
    flat = vector.flatten(1)
    # Scaled by a constant first: the squares of a saturated loss's gradient are zero in single precision.
    largest = flat.detach().abs().amax(dim=1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, torch.ones_like(largest))
    length = flat.square().sum(dim=1, keepdim=True)
    return flat * torch.where(length > 0, length, torch.ones_like(length)).rsqrt()
