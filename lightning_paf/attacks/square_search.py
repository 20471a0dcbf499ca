"""The proposals of the Square attack."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_paf.functional.geometry import geometry_of
from lightning_paf.types import Norm

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the area of the squares halves.

Schedule of the paper for 10,000 queries, not rescaled.
"""
_TILES = 5  # the l2 start has 5 x 5 tiles
_TINY = 1e-12  # added to divisors


class SquareSearch(ABC):
    """The current images of a batch, and the random numbers of all queries.

    `propose` changes windows of `images` in place, because copies of the images would cost more than a forward pass of
    a small network. `revert` undoes the change where it did not help.
    """

    smallest = 1
    looks_ahead = False  # whether the class implements `ahead`

    def __init__(self, x: Tensor, radius: float, queries: int, p_init: float) -> None:
        self.x, self.radius, self.queries = x, radius, queries
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

    def ahead(self, rows: Tensor, queries: Tensor) -> Tensor:
        """Proposals (m, C, H, W) of `queries` (m,) for the images `rows` (m,)."""
        raise NotImplementedError

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


class _LinfSearch(SquareSearch):
    """l-inf search: every pixel moves by `radius`, up or down, in stripes or squares."""

    looks_ahead = True

    def __init__(self, x: Tensor, radius: float, queries: int, p_init: float) -> None:
        ball, step = geometry_of("linf"), torch.full_like(x, radius)
        self.low, self.high = (ball.move(x, delta, radius, (0.0, 1.0)) for delta in (-step, step))
        super().__init__(x, radius, queries, p_init)
        self.up = torch.randint(2, (queries, x.shape[1], 1, 1)).to(x)

    @cached_property
    def windows(self) -> Tensor:
        """First row, first column and side of the window of every query, (queries, 3)."""
        sides = [self.side(query) for query in range(self.queries)]
        windows = [(*self.corner(query, side), side) for query, side in enumerate(sides)]
        return torch.tensor(windows, device=self.images.device)

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

    def ahead(self, rows: Tensor, queries: Tensor) -> Tensor:
        """Images with one square moved up or down."""
        top, left, side = self.windows[queries].unsqueeze(2).unbind(1)
        down, right = (torch.arange(length, device=rows.device) for length in (self.height, self.width))
        inside = ((down >= top) & (down < top + side)).unsqueeze(2) & (
            (right >= left) & (right < left + side)
        ).unsqueeze(1)
        moved = torch.lerp(self.low[rows], self.high[rows], self.up[queries])
        return torch.where(inside.unsqueeze(1), moved, self.images[rows])

    def select(self, rows: Tensor) -> None:
        """Keep some images (n,) only."""
        self.images, self.low, self.high = self.images[rows], self.low[rows], self.high[rows]


class _L2Search(SquareSearch):
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


SEARCHES: Mapping[Norm, type[SquareSearch]] = MappingProxyType({"linf": _LinfSearch, "l2": _L2Search})


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
