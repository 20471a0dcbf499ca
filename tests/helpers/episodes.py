"""A batch of two small episodes."""

import torch

from lightning_paf.data.episode_set import EpisodeBatch


def episodes(ways: int = 1, shots: int = 1, size: int = 16) -> EpisodeBatch:
    """Bright squares of each class on dark noise; the query holds all classes."""
    rng = torch.Generator().manual_seed(0)
    support = 0.2 * torch.rand(2, ways, shots, 1, size, size, generator=rng)
    query = 0.2 * torch.rand(2, 1, size, size, generator=rng)
    support_masks = torch.zeros(2, ways, shots, size, size, dtype=torch.int64)
    query_mask = torch.zeros(2, size, size, dtype=torch.int64)
    for way in range(ways):
        rows, level = slice(2 + 6 * way, 7 + 6 * way), 0.6 + 0.3 * way
        support_masks[:, way, ..., rows, 3:9] = way + 1
        support[:, way, ..., rows, 3:9] += level
        query_mask[:, rows, 8:13] = way + 1
        query[..., rows, 8:13] += level
    return EpisodeBatch(support.clamp(0, 1), support_masks, query.clamp(0, 1), query_mask, torch.arange(2))
