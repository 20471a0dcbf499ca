"""Hard-label queries of a model, within a budget."""

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.minimal import Nearest
from lightning_paf.functional.geometry import Bounds
from lightning_paf.functional.predictions import misclassified
from lightning_paf.types import Forward


class Decisions:
    """Hard-label access to a model with a query budget; keeps the nearest result.

    Args:
        forward: Images to logits, of which only the largest is used.
        x: Clean images (N, C, H, W).
        y: Labels (N,).
        queries: Query budget per image.
        bounds: Range to which points are clamped.
        batch_size: Maximum number of points in a forward pass.
    """

    def __init__(
        self, forward: Forward, x: Tensor, y: Tensor, queries: int, bounds: Bounds, batch_size: int = 1000
    ) -> None:
        self.forward, self.x, self.y, self.bounds, self.batch_size = forward, x, y, bounds, batch_size
        self.nearest = Nearest(x, "l2")
        self.remaining = torch.full((len(x),), queries, device=x.device)

    def correct_rows(self) -> Tensor:
        """Query the clean images; return the indices (n,) of correct predictions."""
        rows = torch.arange(len(self.x), device=self.x.device)
        return rows[~self.is_adversarial(rows, torch.zeros_like(self.x.flatten(1)))]

    @torch.no_grad()
    def is_adversarial(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Mask (n,) of adversarial offsets (n, D); False beyond the query budget.

        `rows` (n,) holds the index of the clean image of each offset; an image can occur several times.
        """
        queried = _occurrence(rows) < self.remaining[rows]
        answers = torch.zeros_like(queried)
        for part in torch.split(queried.nonzero().squeeze(1), self.batch_size):
            indices = rows[part]
            points = self.x[indices] + offsets[part].view(-1, *self.x.shape[1:])
            points = points if self.bounds is None else points.clamp(*self.bounds)
            answers[part] = misclassified(self.forward(points), self.y[indices])
            self.nearest.update(indices, points, answers[part])
            self.remaining -= torch.bincount(indices, minlength=len(self.remaining))
        return answers

    def bisect(self, rows: Tensor, low: Tensor, high: Tensor, directions: Tensor, tolerance: float) -> Tensor:
        """Distances (n,) of the boundary along unit directions (n, D), by bisection.

        The images with indices `rows` (n,) are classified correctly at distances `low` (n,) and misclassified at `high`
        (n,). The bisection ends at intervals of length `tolerance`.
        """
        low, high = low.clone(), high.clone()
        while True:
            middle = (low + high) / 2
            between = (low < middle) & (middle < high)  # false for neighbours in floating point
            wide = (between & (high - low > tolerance) & (self.remaining[rows] > 0)).nonzero().squeeze(1)
            if len(wide) == 0:
                return high
            answers = self.is_adversarial(rows[wide], middle[wide, None] * directions[wide])
            high[wide] = torch.where(answers, middle[wide], high[wide])
            low[wide] = torch.where(answers, low[wide], middle[wide])


def _occurrence(rows: Tensor) -> Tensor:
    """Number of equal entries before each one (n,)."""
    ordered, order = rows.sort(stable=True)
    counts = torch.empty_like(rows)
    counts[order] = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ordered, ordered)
    return counts


def unit(vectors: Tensor) -> Tensor:
    """Vectors (n, D) scaled to length 1."""
    scaled: Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    return scaled
