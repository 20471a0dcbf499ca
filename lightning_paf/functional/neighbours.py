"""Exact nearest neighbours in blocks, with bounded memory."""

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 1024
"""Vectors in a block."""


def nearest(
    queries: Tensor,
    references: Tensor,
    device: torch.device | str = "cpu",
    advance: Callable[[int], object] = lambda rows: None,
) -> tuple[Tensor, Tensor]:
    """Find the nearest reference of each query in l2.

    Blocks of both are moved to `device` in turn, so memory does not depend on N and M. Matrix products select the
    neighbours; their distances are then computed from differences, so that equal vectors have the distance 0.

    Args:
        queries: (N, d), floating point or uint8.
        references: (M, d), of the same type, M > 0.
        device: Device of the search.
        advance: Called with the number of queries that were completed since the last call.

    Returns:
        Distances (N,), and indices of the references (N,) int64, both on the CPU.
    """

    def block(part: Tensor) -> Tensor:
        moved = part.to(device)
        return moved if moved.is_floating_point() else moved.float()

    # Matrix products of vectors around 0 lose fewer digits.
    centre = block(references[:ROWS]).mean(0)
    distances, indices = [], []
    for query in torch.split(queries, ROWS):
        q = block(query) - centre
        best = torch.full((len(q),), torch.inf, dtype=q.dtype, device=q.device)
        index = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        for number, part in enumerate(torch.split(references, ROWS)):
            found, where = _distances(q, block(part) - centre).min(1)
            index = torch.where(found < best, where + number * ROWS, index)
            best = torch.minimum(found, best)
        index = index.cpu()
        distances.append((block(query) - block(references[index])).norm(dim=1).cpu())
        indices.append(index)
        advance(len(q))
    return torch.cat(distances), torch.cat(indices)


def manifold_fraction(points: Tensor, candidates: Tensor, k: int = 3) -> float:
    """Fraction of candidates on the manifold of some points.

    The manifold is the union of balls around the points, each up to its k-th nearest neighbour among them (Kynkäänniemi
    et al. 2019, equation 1). The precision of generated samples is `manifold_fraction(real, generated)`, their recall
    `manifold_fraction(generated, real)`.

    Args:
        points: (M, d), floating point.
        candidates: (N, d), of the same type and device, N > 0.
        k: Neighbour that defines the radius, below M.

    Raises:
        ValueError: Not more than k points.
    """
    if len(points) <= k:
        raise ValueError(f"There must be more than {k} points for k = {k}, got {len(points)}. Pass more images.")
    # The nearest vector among the points is the point itself.
    radii = torch.cat([_distances(part, points).kthvalue(k + 1, dim=1).values for part in torch.split(points, ROWS)])
    inside = torch.cat([(_distances(part, points) <= radii).any(1) for part in torch.split(candidates, ROWS)])
    return float(inside.double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances (N, M) of vectors (N, d) and (M, d), by a matrix product."""
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")
