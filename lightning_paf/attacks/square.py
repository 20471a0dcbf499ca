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
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import undefined_first
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the area of the squares halves (the paper's schedule for 10,000 queries, not rescaled)."""
_TILES = 5  # the l2 start has 5 x 5 tiles
_TINY = 1e-12  # added to divisors
_CPU_INTERVAL, _DEVICE_INTERVAL = 1, 10  # queries between two checks for success, which synchronise a device


class Square(Attack):
    """Random search by squares (Andriushchenko et al. 2020), on the margin, with the settings of AutoAttack.

    Every query changes one window, the same for all images of a batch, and keeps the change where the margin of the
    wrong classes grows. An image is not queried again after its first success. A batch makes up to `1 + queries`
    forward passes.

    A window lies anywhere in the image, as in the paper. (The published code never reaches the last row and column.)
    All random numbers are drawn on the host at the start of a batch, and depend neither on the device nor on
    successes. Where `forward` has a method `exact` (see `SearchModel`), it confirms every success.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: `linf` or `l2`.
        queries: Forward passes after that of the starting point.
        p_init: Fraction of the image that the first squares cover.
        batch_size: Images attacked at once.

    Raises:
        ValueError: As for every attack; norm l1; a number below 1; a fraction outside (0, 1].
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
    ) -> None:
        super().__init__(eps, norm=norm)
        if norm not in _WALKS:
            raise ValueError(f"norm of Square must be linf or l2, got {norm!r}. Pass ReferenceAutoAttack for l1.")
        if not 0 < p_init <= 1:
            raise ValueError(f"p_init must be a fraction in (0, 1], got {p_init}.")
        self.queries, self.p_init, self.batch_size = queries, p_init, batch_size
        self.require(queries=1, batch_size=1)

    @torch.no_grad()
    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """The first adversarial image found for each, or the image itself."""
        del loss
        parts = zip(torch.split(x, self.batch_size), torch.split(y, self.batch_size), strict=True)
        return torch.cat([self._search(forward, *part) for part in parts])

    def _search(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """Attack one batch."""
        walk = _WALKS[self.norm](x, self.radius, self.queries, self.p_init)
        x_adv, index, labels = x.clone(), torch.arange(len(x), device=x.device), hard_labels(y).unsqueeze(1)
        best = _lead(forward(walk.images), labels)
        needed = torch.zeros_like(best)  # lead that a success must exceed: that of the last refuted candidate
        every = _CPU_INTERVAL if x.is_cpu else _DEVICE_INTERVAL
        for query in range(self.queries + 1):
            last = query == self.queries
            if (last or query % every == 0) and (best > needed).any():
                hits = _confirmed(best > needed, forward, walk.images, labels, best, needed)
                x_adv[index[hits]] = walk.images[hits]
                rest = (~hits).nonzero().squeeze(1)
                best = best.masked_fill(best == torch.inf, -torch.inf)  # undefined, and refuted by the exact model
                index, labels, best, needed = index[rest], labels[rest], best[rest], needed[rest]
                walk.select(rest)
            if last or len(index) == 0:
                break
            walk.propose(query)
            found = _lead(forward(walk.images), labels)
            walk.revert(found > best)
            best = torch.maximum(best, found)
        return x_adv


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Lead of the best wrong class (n,), infinite where undefined; `margin` in fewer operations."""
    ahead = logits - logits.gather(1, labels)
    return undefined_first(ahead.scatter_(1, labels, -torch.inf).amax(1), logits)


def _confirmed(
    candidates: Tensor, forward: Forward, images: Tensor, labels: Tensor, leads: Tensor, needed: Tensor
) -> Tensor:
    """Candidates (n,) that the exact model, if any, confirms; `needed` is raised to the lead of the others."""
    exact: Forward | None = getattr(forward, "exact", None)
    if exact is None:
        return candidates
    rows = candidates.nonzero().squeeze(1)
    wrong = _lead(exact(images[rows]), labels[rows]) > 0
    needed[rows[~wrong]] = leads[rows[~wrong]]
    return candidates.index_put((rows,), wrong)


class _Walk(ABC):
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
        """The first images."""

    @abstractmethod
    def propose(self, query: int) -> None:
        """Change `images`."""

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


class _LinfWalk(_Walk):
    """Every pixel moves by `radius`, up or down: in stripes first, then in squares, channel by channel."""

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


class _L2Walk(_Walk):
    """Each proposal moves the energy of one window, and all unused energy, into another window.

    The length of the perturbation is then `radius`, before pixels are clamped. Nothing outside the two windows needs
    to be rescaled.
    """

    smallest = 3

    def __init__(self, x: Tensor, radius: float, queries: int, p_init: float) -> None:
        self.ball = geometry_of("l2")
        self.bumps: dict[int, Tensor] = {}
        super().__init__(x, self.ball.fraction_of_radius * radius, queries, p_init)
        self.lying: list[int] = torch.randint(2, (queries,)).tolist()
        self.signs = self._random_signs(queries).to(x.device)
        self.rows = torch.arange(len(x), device=x.device)

    def _start(self) -> Tensor:
        side = max(min(self.height, self.width) // _TILES, 1)
        first = [max((length - _TILES * side) // 2, 0) for length in (self.height, self.width)]
        delta = torch.zeros_like(self.x)
        for top in range(first[0], self.height - side + 1, side):
            for left in range(first[1], self.width - side + 1, side):
                bump = self._upright_or_lying(side)[int(torch.randint(2, ()))]
                self.window(delta, (top, left), side).copy_(bump * self._random_signs().to(self.x.device))
        delta *= (self.radius / self.ball.size(delta)).view(-1, 1, 1, 1)
        return (self.x + delta).clamp_(0, 1)

    def _random_signs(self, *times: int) -> Tensor:
        """(..., n, C, 1, 1) int8, drawn on the host."""
        return torch.randint(2, (*times, *self.x.shape[:2], 1, 1), dtype=torch.int8).mul_(2).sub_(1)

    def propose(self, query: int) -> None:
        """Empty the second window and fill the first."""
        side = self.side(query)
        corners = self.corner(query, side), self.corner(query, side, second=True)
        (taker, clean), (giver, background) = (
            (self.window(self.images, corner, side), self.window(self.x, corner, side)) for corner in corners
        )
        self.changed = [(taker, taker.clone()), (giver, giver.clone())]
        unused = self.radius**2 - (self.images - self.x).square_().sum((1, 2, 3), keepdim=True)
        old, given = taker - clean, giver - background
        _clear_overlap(given, corners, side)
        mass = _mass(old)
        energy = (mass + _mass(given)).add_(unused, alpha=1 / self.x.shape[1]).clamp_min_(0)  # of each channel
        new = torch.addcdiv(self._bump(side, query), old, mass.sqrt_().add_(_TINY))
        new *= (energy / _mass(new).add_(_TINY**2)).sqrt_()
        giver.copy_(background)
        taker.copy_(new.add_(clean).clamp_(0, 1))

    def select(self, rows: Tensor) -> None:
        """Keep some images (n,) only."""
        self.images, self.x, self.rows = self.images[rows], self.x[rows], self.rows[rows]

    def side(self, query: int) -> int:
        """Width of the squares: an odd number, unless the image is smaller."""
        return min(super().side(query) | 1, self.height, self.width)

    def _bump(self, side: int, query: int) -> Tensor:
        """The window of a query with its random signs, (n, C, side, side)."""
        return self._upright_or_lying(side)[self.lying[query]] * self.signs[query].index_select(0, self.rows)

    def _upright_or_lying(self, side: int) -> Tensor:
        if side not in self.bumps:
            bump = _two_hills(side).to(self.x)
            self.bumps[side] = torch.stack((bump, bump.t()))
        return self.bumps[side]


_WALKS: Mapping[Norm, type[_Walk]] = MappingProxyType({"linf": _LinfWalk, "l2": _L2Walk})


def _mass(delta: Tensor) -> Tensor:
    """Squared length of each channel, (n, C, 1, 1)."""
    return delta.square().sum((2, 3), keepdim=True)


def _clear_overlap(second: Tensor, corners: tuple[tuple[int, int], tuple[int, int]], side: int) -> None:
    """Zero the overlap of a window (n, C, side, side) at the second corner with that at the first."""
    rows, columns = (
        slice(max(first - here, 0), max(side + min(first - here, 0), 0)) for first, here in zip(*corners, strict=True)
    )
    second[..., rows, columns] = 0


def _two_hills(side: int) -> Tensor:
    """The window for l2 (the paper's section 3 and figure 2), (side, side), of length 1: a hill above a valley."""
    upper, lower = _hill(side // 2, side), -_hill(side - side // 2, side)
    both: Tensor = torch.cat((upper, lower))
    both /= torch.linalg.vector_norm(both)
    return both


def _hill(height: int, width: int) -> Tensor:
    """Rectangular rings around the middle: ring r holds the sum of 1 / (k + 1)^2 over all k >= r."""
    if height == 0:
        return torch.zeros(0, width)
    rings = max(height, width) // 2 + 1
    falling = (1 / torch.arange(1, rings + 1) ** 2).flip(0).cumsum(0).flip(0)
    down, right = ((torch.arange(length) - length // 2).abs() for length in (height, width))
    hill: Tensor = falling[torch.maximum(down[:, None], right[None, :])]
    hill /= torch.linalg.vector_norm(hill)
    return hill
