"""The Square attack, a score-based random search."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import undefined_first
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the area of the squares halves.

Schedule of the paper for 10,000 queries, not rescaled.
"""
_TILES = 5  # the l2 start has 5 x 5 tiles
_TINY = 1e-12  # added to divisors
_CPU_INTERVAL, _DEVICE_INTERVAL = 1, 10  # queries between two checks for success, which synchronise a device


class Square(Attack):
    """Square attack (Andriushchenko et al. 2020) with AutoAttack's settings.

    A random search: every query changes one window, the same for all images of a batch, and keeps it where the margin
    loss improves. The search of an image ends at the first check after a success: after every query on a CPU, every 10
    queries on other devices. A batch makes up to `1 + queries` forward passes.

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
        if norm not in _SEARCHES:
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
        search = _SEARCHES[self.norm](x, self.radius, self.queries, self.p_init)
        x_adv, index, labels = x.clone(), torch.arange(len(x), device=x.device), hard_labels(y).unsqueeze(1)
        best = _margin(forward(search.images), labels)
        threshold = torch.zeros_like(best)  # margin that a success must exceed: that of the last refuted candidate
        every = _CPU_INTERVAL if x.is_cpu else _DEVICE_INTERVAL
        for query in range(self.queries + 1):
            last = query == self.queries
            if (last or query % every == 0) and (best > threshold).any():
                hits = _confirmed(best > threshold, forward, search.images, labels, best, threshold)
                x_adv[index[hits]] = search.images[hits]
                rest = (~hits).nonzero().squeeze(1)
                best = best.masked_fill(best == torch.inf, -torch.inf)  # undefined, and refuted by the exact model
                index, labels, best, threshold = index[rest], labels[rest], best[rest], threshold[rest]
                search.select(rest)
            if last or len(index) == 0:
                break
            search.propose(query)
            found = _margin(forward(search.images), labels)
            search.revert(found > best)
            best = torch.maximum(best, found)
        return x_adv


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin of the best wrong class (n,), infinite where undefined."""
    differences = logits - logits.gather(1, labels)
    return undefined_first(differences.scatter_(1, labels, -torch.inf).amax(1), logits)


def _confirmed(
    candidates: Tensor, forward: Forward, images: Tensor, labels: Tensor, margins: Tensor, threshold: Tensor
) -> Tensor:
    """Candidates (n,) that the exact model confirms; all, if there is no exact model.

    `threshold` is raised to the margin of refuted candidates.
    """
    exact: Forward | None = getattr(forward, "exact", None)
    if exact is None:
        return candidates
    rows = candidates.nonzero().squeeze(1)
    wrong = _margin(exact(images[rows]), labels[rows]) > 0
    threshold[rows[~wrong]] = margins[rows[~wrong]]
    return candidates.index_put((rows,), wrong)


class _SquareSearch(ABC):
    """The current images of a batch, and the random numbers of all queries.

    `propose` changes windows of `images` in place, because copies of the images would cost more than a forward pass of
    a small network. `revert` undoes the change where it did not help.
    """

    smallest = 1

    def __init__(self, x: Tensor, radius: float, queries: int, p_init: float) -> None:
        self.x, self.radius = x, radius
        self.height, self.width = x.shape[-2:]
        self.images = self._start()
        self.p_init = p_init
        self.positions: list[list[float]] = torch.rand(queries, 4).tolist()
        self.changed: list[tuple[Tensor, Tensor]] = []  # windows of `images`, and their former contents

    @abstractmethod
    def _start(self) -> Tensor:
        """Starting points."""

    @abstractmethod
    def propose(self, query: int) -> None:
        """Modify one window of every image in `images`."""

    def revert(self, keep: Tensor) -> None:
        """Undo the last change, except for the images `keep` (n,)."""
        back = 1 - keep.view(-1, 1, 1, 1).to(self.x.dtype)
        for window, before in self.changed:
            window.lerp_(before, back)  # exact for weights 0 and 1; cheaper than a masked copy

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Keep some images (n,) only."""

    def side(self, query: int) -> int:
        """Width of the squares."""
        fraction = self.p_init / 2 ** bisect_left(_HALVINGS, query)
        return min(max(round(math.sqrt(fraction * self.height * self.width)), self.smallest), self.height, self.width)

    def corner(self, query: int, side: int, second: bool = False) -> tuple[int, int]:
        """First row and column of a random window; all positions are equally likely."""
        down, right = self.positions[query][2 * second : 2 * second + 2]
        return int(down * (self.height - side + 1)), int(right * (self.width - side + 1))

    def window(self, images: Tensor, corner: tuple[int, int], side: int) -> Tensor:
        """View of the window (n, C, side, side), in one operation."""
        down, right = images.stride()[2:]
        start = images.storage_offset() + corner[0] * down + corner[1] * right
        return images.as_strided((*images.shape[:2], side, side), images.stride(), start)


class _LinfSearch(_SquareSearch):
    """l-inf search: every pixel moves by `radius`, up or down, in stripes or squares."""

    def __init__(self, x: Tensor, radius: float, queries: int, p_init: float) -> None:
        ball, step = geometry_of("linf"), torch.full_like(x, radius)
        self.low, self.high = (ball.move(x, delta, radius, (0.0, 1.0)) for delta in (-step, step))
        super().__init__(x, radius, queries, p_init)
        self.up = torch.randint(2, (queries, x.shape[1], 1, 1)).to(x).unbind()

    def _start(self) -> Tensor:
        n, channels, _, width = self.x.shape
        return torch.lerp(self.low, self.high, torch.randint(2, (n, channels, 1, width)).to(self.x))

    def propose(self, query: int) -> None:
        """Move one square up or down."""
        side = self.side(query)
        corner = self.corner(query, side)
        window, low, high = (self.window(images, corner, side) for images in (self.images, self.low, self.high))
        self.changed = [(window, window.clone())]
        torch.lerp(low, high, self.up[query], out=window)

    def select(self, rows: Tensor) -> None:
        """Keep some images (n,) only."""
        self.images, self.low, self.high = self.images[rows], self.low[rows], self.high[rows]


class _L2Search(_SquareSearch):
    """l2 search: each proposal moves the squared l2 norm of one window to another.

    The unused part of radius^2 is moved as well (paper, section 3).

    The length of the perturbation is then `radius`, before pixels are clamped. Nothing outside the two windows needs
    to be rescaled.
    """

    smallest = 3

    def __init__(self, x: Tensor, radius: float, queries: int, p_init: float) -> None:
        self.ball = geometry_of("l2")
        self.bumps: dict[int, Tensor] = {}
        super().__init__(x, self.ball.fraction_of_radius * radius, queries, p_init)
        self.horizontal: list[int] = torch.randint(2, (queries,)).tolist()
        self.signs = self._random_signs(queries).to(x.device)
        self.rows = torch.arange(len(x), device=x.device)

    def _start(self) -> Tensor:
        side = max(min(self.height, self.width) // _TILES, 1)
        first = [max((length - _TILES * side) // 2, 0) for length in (self.height, self.width)]
        delta = torch.zeros_like(self.x)
        for top in range(first[0], self.height - side + 1, side):
            for left in range(first[1], self.width - side + 1, side):
                bump = self._orientations(side)[int(torch.randint(2, ()))]
                self.window(delta, (top, left), side).copy_(bump * self._random_signs().to(self.x.device))
        delta *= (self.radius / self.ball.size(delta)).view(-1, 1, 1, 1)
        return (self.x + delta).clamp_(0, 1)

    def _random_signs(self, *times: int) -> Tensor:
        """(..., n, C, 1, 1) int8, drawn on the host."""
        return torch.randint(2, (*times, *self.x.shape[:2], 1, 1), dtype=torch.int8).mul_(2).sub_(1)

    def propose(self, query: int) -> None:
        """Clear the second window and enlarge the first (paper, section 3)."""
        side = self.side(query)
        corners = self.corner(query, side), self.corner(query, side, second=True)
        (target, clean), (source, background) = (
            (self.window(self.images, corner, side), self.window(self.x, corner, side)) for corner in corners
        )
        self.changed = [(target, target.clone()), (source, source.clone())]
        unused = self.radius**2 - (self.images - self.x).square_().sum((1, 2, 3), keepdim=True)
        old, removed = target - clean, source - background
        _clear_overlap(removed, corners, side)
        squared_norm = _squared_norm(old)
        budget = squared_norm + _squared_norm(removed)  # of each channel
        budget = budget.add_(unused, alpha=1 / self.x.shape[1]).clamp_min_(0)
        new = torch.addcdiv(self._bump(side, query), old, squared_norm.sqrt_().add_(_TINY))
        new *= (budget / _squared_norm(new).add_(_TINY**2)).sqrt_()
        source.copy_(background)
        target.copy_(new.add_(clean).clamp_(0, 1))

    def select(self, rows: Tensor) -> None:
        """Keep some images (n,) only."""
        self.images, self.x, self.rows = self.images[rows], self.x[rows], self.rows[rows]

    def side(self, query: int) -> int:
        """Width of the squares: an odd number, unless the image is smaller."""
        return min(super().side(query) | 1, self.height, self.width)

    def _bump(self, side: int, query: int) -> Tensor:
        """The window of a query with its random signs, (n, C, side, side)."""
        return self._orientations(side)[self.horizontal[query]] * self.signs[query].index_select(0, self.rows)

    def _orientations(self, side: int) -> Tensor:
        if side not in self.bumps:
            bump = _eta(side).to(self.x)
            self.bumps[side] = torch.stack((bump, bump.t()))
        return self.bumps[side]


_SEARCHES: Mapping[Norm, type[_SquareSearch]] = MappingProxyType({"linf": _LinfSearch, "l2": _L2Search})


def _squared_norm(delta: Tensor) -> Tensor:
    """Squared length of each channel, (n, C, 1, 1)."""
    return delta.square().sum((2, 3), keepdim=True)


def _clear_overlap(second: Tensor, corners: tuple[tuple[int, int], tuple[int, int]], side: int) -> None:
    """Zero the overlap of the second window (n, C, side, side) with the first."""
    rows, columns = (
        slice(max(first - here, 0), max(side + min(first - here, 0), 0)) for first, here in zip(*corners, strict=True)
    )
    second[..., rows, columns] = 0


def _eta(side: int) -> Tensor:
    """Window (side, side) of the l2 search, of length 1: pyramids of both signs.

    See section 3 and figure 2 of the paper.
    """
    upper, lower = _pyramid(side // 2, side), -_pyramid(side - side // 2, side)
    both: Tensor = torch.cat((upper, lower))
    both /= torch.linalg.vector_norm(both)
    return both


def _pyramid(height: int, width: int) -> Tensor:
    """Rectangular rings around the middle: ring r is the sum of 1 / (k + 1)^2, k >= r."""
    if height == 0:
        return torch.zeros(0, width)
    rings = max(height, width) // 2 + 1
    weights = (1 / torch.arange(1, rings + 1) ** 2).flip(0).cumsum(0).flip(0)
    down, right = ((torch.arange(length) - length // 2).abs() for length in (height, width))
    pyramid: Tensor = weights[torch.maximum(down[:, None], right[None, :])]
    pyramid /= torch.linalg.vector_norm(pyramid)
    return pyramid
