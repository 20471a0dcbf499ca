"""Neural tangent kernel of fully connected ReLU networks."""

import math

import torch
from torch import Tensor

_LARGEST_COSINE = 1 - 1e-12
"""In double precision; the derivative of the angle is infinite at a cosine of 1."""


def neural_tangent_kernel(x: Tensor, z: Tensor, depth: int, rows: int = 256) -> Tensor:
    """Neural tangent kernel of an infinitely wide ReLU network without biases.

    The arc-cosine recursion (Cho and Saul 2009; Jacot et al. 2018) for He's initialisation in the NTK parametrisation:
    with S_0 = T_0 = x.z / d, angle t = arccos(S_{l-1} / q) and q = |x| |z| / d, which is the same for all layers,
    S_l = q (sin t + (pi - t) cos t) / pi and T_l = S_l + T_{l-1} (pi - t) / pi.

    Args:
        x: Vectors (N, d), best in float64.
        z: Vectors (n, d), of the same type.
        depth: Number of hidden layers, 0 for a linear function.
        rows: Vectors of `x` computed at once, which limits the memory of intermediate results.

    Returns:
        Kernel (N, n). A zero vector has a kernel of 0.
    """
    return torch.cat([_block(part, z, depth) for part in torch.split(x, rows)])


def gram_matrix(x: Tensor, depth: int) -> Tensor:
    """Kernel (n, n) of vectors (n, d) with themselves, with the exact diagonal.

    The diagonal is (depth + 1) |x|^2 / d, which the recursion reaches only up to the rounding of an angle of 0.
    """
    diagonal = (depth + 1) * x.square().sum(1) / x.shape[1]
    off = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    return neural_tangent_kernel(x, x, depth) * off + torch.diag(diagonal)


def _block(x: Tensor, z: Tensor, depth: int) -> Tensor:
    length_x, length_z = (v.square().sum(1).clamp_min(1e-24).sqrt() for v in (x, z))
    scale = length_x[:, None] * length_z / x.shape[1]
    kernel = cosine = x @ z.T / x.shape[1] / scale
    for _ in range(depth):
        cosine = cosine.clamp(-_LARGEST_COSINE, _LARGEST_COSINE)
        derivative = 1 - cosine.arccos() / math.pi
        cosine = (1 - cosine.square()).sqrt() / math.pi + cosine * derivative
        kernel = cosine + kernel * derivative
    return scale * kernel
