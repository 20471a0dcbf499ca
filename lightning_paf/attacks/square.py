"""The Square attack, a score-based random search."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.square_search import SEARCHES, SquareSearch
from lightning_paf.attacks.target import Target
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import undefined_first
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

_CPU_INTERVAL, _DEVICE_INTERVAL = 1, 10  # queries between two checks for success, which synchronise a device
_CPU_FILLED = 64  # images of a forward pass that fill a core
_OVERHEAD = 4  # images whose computation costs as much as a pass by itself


class Square(Attack):
    """Square attack (Andriushchenko et al. 2020) with AutoAttack's settings.

    A random search: every query changes one window, the same for all images of a batch, and keeps it where the margin
    loss improves. Where few images stand, l-inf queries are evaluated several at a time; the result is the same. The
    search of an image ends at the first check after a success: after every query on a CPU, every 10 queries on other
    devices. A batch makes up to `1 + queries` forward passes.

    All positions of a window in the image are possible, as in the paper. (The published code never reaches the last row
    and column.) All random numbers are drawn on the host at the start of a batch, so they are independent of the device
    and of earlier successes. Where `forward` has a method `exact` (see `SearchModel`), it confirms every success.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: `linf` or `l2`.
        queries: Forward passes after that of the starting point.
        p_init: Fraction of the image that the first squares cover.
        batch_size: Images attacked at once.
        target: See `Attack`.

    Raises:
        ValueError: `norm` is l1, `queries` or `batch_size` is below 1, or `p_init` not in (0, 1]; see also `Attack`.
    """

    fixed_loss = True
    settings = ("queries", "p_init", "batch_size")

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        queries: int = 5000,
        p_init: float = 0.8,
        batch_size: int = 250,
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm=norm, target=target)
        if norm not in SEARCHES:
            raise ValueError(f"norm of Square must be linf or l2, got {norm!r}. Pass ReferenceAutoAttack for l1.")
        if not 0 < p_init <= 1:
            raise ValueError(f"p_init must be a fraction in (0, 1], got {p_init}. Pass p_init=0.8.")
        self.queries, self.p_init, self.batch_size = queries, p_init, batch_size
        self.require(queries=1, batch_size=1)

    @torch.no_grad()
    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Return the first adversarial image of each sample, else the clean image."""
        del loss
        if x.dim() != 4:
            raise ValueError(
                f"Images must have the shape (N, C, H, W) for Square, got {tuple(x.shape)}. Pass other attacks, such "
                "as apgd-ce and fab-t."
            )
        parts = zip(torch.split(x, self.batch_size), torch.split(y, self.batch_size), strict=True)
        return torch.cat([self._search(forward, *part) for part in parts])

    def _search(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """Search adversarial images of one batch."""
        search = SEARCHES[self.norm](x, self.radius, self.queries, self.p_init)
        standing = _Standing(forward, search, x, hard_labels(y))
        every, filled = (_CPU_INTERVAL, _CPU_FILLED) if x.is_cpu else (_DEVICE_INTERVAL, self.batch_size)
        for query in range(self.queries + 1):
            last = query == self.queries
            if last or query % every == 0:
                standing.harvest()
            if last or len(standing.index) == 0:
                break
            if search.looks_ahead and 2 * len(standing.index) <= filled:
                _look_ahead(standing, search, query, filled)
                break
            search.propose(query)
            found = standing.margin(search.images)
            search.revert(found > standing.best)
            standing.best = torch.maximum(standing.best, found)
        return standing.x_adv


class _Standing:
    """The images of a batch without a success so far.

    Attributes:
        index: Their positions in the batch (n,).
        best: Their largest margins so far (n,).
        x_adv: The first success of each image of the batch, else the clean image.
    """

    def __init__(self, forward: Forward, search: SquareSearch, x: Tensor, y: Tensor) -> None:
        self.forward, self.search, self.x_adv = forward, search, x.clone()
        self.index, self.labels = torch.arange(len(x), device=x.device), y.unsqueeze(1)
        self.best = self.margin(search.images)
        self.threshold = torch.zeros_like(self.best)  # a success must exceed it: the margin last refuted

    def margin(self, images: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Margins of images of the standing rows (m,)."""
        return _margin(self.forward(images), self.labels[rows])

    def harvest(self, over: Tensor | None = None) -> Tensor:
        """Store successes; keep the other rows, except for `over` (n,), and return them."""
        hits = self.best > self.threshold
        if hits.any():
            hits = self._confirmed(hits)
            self.x_adv[self.index[hits]] = self.search.images[hits]
            self.best = self.best.masked_fill(self.best == torch.inf, -torch.inf)  # undefined, and refuted
        rows = (~(hits if over is None else hits | over)).nonzero().squeeze(1)
        if len(rows) < len(hits):
            self.index, self.labels = self.index[rows], self.labels[rows]
            self.best, self.threshold = self.best[rows], self.threshold[rows]
            self.search.select(rows)
        return rows

    def _confirmed(self, candidates: Tensor) -> Tensor:
        """Candidates (n,) that the exact model confirms; all, if there is no exact model.

        `threshold` is raised to the margin of refuted candidates.
        """
        exact: Forward | None = getattr(self.forward, "exact", None)
        if exact is None:
            return candidates
        rows = candidates.nonzero().squeeze(1)
        wrong = _margin(exact(self.search.images[rows]), self.labels[rows]) > 0
        self.threshold[rows[~wrong]] = self.best[rows[~wrong]]
        return candidates.index_put((rows,), wrong)


def _look_ahead(standing: _Standing, search: SquareSearch, query: int, filled: int) -> None:
    """Finish the search with passes over several queries of every image.

    The next queries of an image are proposed from its present state, and the first improvement is taken. Those after
    it are proposed again from the new state. The result is that of the sequential search with fewer, larger passes.
    """
    next_query = torch.full_like(standing.index, query)
    rate = 1.0  # recent fraction of improvements
    while n := len(standing.index):
        depth = int(max(min(filled / n, math.sqrt(2 * _OVERHEAD / (n * rate))), 1))
        queries = next_query.unsqueeze(1) + torch.arange(depth, device=next_query.device)
        rows, column = (queries < search.queries).nonzero(as_tuple=True)
        images = search.ahead(rows, queries[rows, column])
        found = torch.full(queries.shape, -torch.inf, device=images.device, dtype=images.dtype)
        found[rows, column] = standing.margin(images, rows)
        better = found > standing.best.unsqueeze(1)
        improved, first = better.any(1), better.int().argmax(1)
        chosen = (improved[rows] & (column == first[rows])).nonzero().squeeze(1)
        search.images[rows[chosen]] = images[chosen]
        standing.best = torch.where(improved, found.gather(1, first.unsqueeze(1)).squeeze(1), standing.best)
        next_query = next_query + torch.where(improved, first + 1, depth)
        rate = 0.8 * rate + 0.2 * max(len(chosen) / len(rows), 1e-4)
        next_query = next_query[standing.harvest(over=next_query >= search.queries)]


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin of the best wrong class (n,), infinite where undefined."""
    differences = logits - logits.gather(1, labels)
    return undefined_first(differences.scatter_(1, labels, -torch.inf).amax(1), logits)
