"""Queries of a model for decisions, within a budget."""

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.minimal import Nearest
from lightning_paf.functional.geometry import Bounds
from lightning_paf.functional.predictions import misclassified
from lightning_paf.types import Forward


class Decisions:
    """Decide whether points are adversarial, count the queries, and keep the nearest adversarial point.

    Args:
        forward: Images to logits, of which only the largest counts.
        x: Clean images (N, C, H, W).
        y: Labels (N,).
        queries: Number of queries for each image.
        bounds: Points are clamped to these.
        batch_size: Points in a forward pass.
    """

    def __init__(
        self, forward: Forward, x: Tensor, y: Tensor, queries: int, bounds: Bounds, batch_size: int = 1000
    ) -> None:
        self.forward, self.x, self.y, self.bounds, self.batch_size = forward, x, y, bounds, batch_size
        self.nearest = Nearest(x, "l2")
        self.left = torch.full((len(x),), queries, device=x.device)

    def first(self) -> Tensor:
        """Query the clean images; indices (n,) of those that are classified correctly."""
        rows = torch.arange(len(self.x), device=self.x.device)
        return rows[~self.wrong(rows, torch.zeros_like(self.x.flatten(1)))]

    @torch.no_grad()
    def wrong(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Whether images at offsets (n, D) are adversarial, (n,) bool; False, without a query, beyond the budget.

        `rows` (n,) holds the index of the clean image of each offset; an image can occur several times.
        """
        queried = _turn(rows) < self.left[rows]
        answers = torch.zeros_like(queried)
        for part in torch.split(queried.nonzero().squeeze(1), self.batch_size):
            mine = rows[part]
            points = self.x[mine] + offsets[part].view(-1, *self.x.shape[1:])
            points = points if self.bounds is None else points.clamp(*self.bounds)
            answers[part] = misclassified(self.forward(points), self.y[mine])
            self.nearest.update(mine, points, answers[part])
            self.left -= torch.bincount(mine, minlength=len(self.left))
        return answers

    def between(self, rows: Tensor, low: Tensor, high: Tensor, directions: Tensor, tolerance: float) -> Tensor:
        """Distances (n,) of the boundary along unit directions (n, D), by bisection up to the tolerance.

        The clean images `rows` (n,) are classified correctly at distances `low` (n,) and misclassified at `high` (n,).
        """
        low, high = low.clone(), high.clone()
        while True:
            middle = (low + high) / 2
            between = (low < middle) & (middle < high)  # false for neighbours in floating point
            wide = (between & (high - low > tolerance) & (self.left[rows] > 0)).nonzero().squeeze(1)
            if len(wide) == 0:
                return high
            answers = self.wrong(rows[wide], middle[wide, None] * directions[wide])
            high[wide] = torch.where(answers, middle[wide], high[wide])
            low[wide] = torch.where(answers, low[wide], middle[wide])


def _turn(rows: Tensor) -> Tensor:
    """Number of equal entries before each one (n,)."""
    ordered, order = rows.sort(stable=True)
    turns = torch.empty_like(rows)
    turns[order] = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ordered, ordered)
    return turns


def unit(vectors: Tensor) -> Tensor:
    """Vectors (n, D) scaled to length 1."""
    scaled: Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    return scaled
