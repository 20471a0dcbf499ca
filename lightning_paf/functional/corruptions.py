"""Random and constant changes of images, clipped to [0, 1]."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def gaussian(x: Tensor, level: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1] plus `level` times standard normal noise."""
    return (x + level * torch.randn_like(x)).clamp(0, 1)


def uniform(x: Tensor, level: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1] plus `level` times uniform noise in [0, 1]."""
    return (x + level * torch.rand_like(x)).clamp(0, 1)


def constant(x: Tensor, level: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1] plus `level`."""
    return (x + level).clamp(0, 1)


CORRUPTIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "constant": constant,
}
"""Corruptions of Chen, Jin, Shang (2022) by name."""
