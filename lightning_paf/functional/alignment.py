"""Cosine similarity of gradients."""

import torch
from torch import Tensor


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity (N,) of tensors (N, ...), per example.

    Where one of them is zero, the similarity and its derivative are 0.
    """
    return (_unit(first) * _unit(second)).sum(dim=1)


def _unit(vector: Tensor) -> Tensor:
    """Normalise to length 1, (N, D); a zero vector stays zero."""
    flat = vector.flatten(1)
    # Scaled first: the squares of a saturated loss's gradient underflow in single precision.
    largest = flat.detach().abs().amax(dim=1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, torch.ones_like(largest))
    length = flat.square().sum(dim=1, keepdim=True)
    return flat * torch.where(length > 0, length, torch.ones_like(length)).rsqrt()
