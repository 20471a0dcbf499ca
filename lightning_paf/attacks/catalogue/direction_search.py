"""OPT and Sign-OPT, searches for the direction in which the boundary is nearest."""

from abc import abstractmethod
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.decisions import Decisions, unit
from lightning_paf.attacks.catalogue.minimal import MinimalAttack
from lightning_paf.functional.geometry import Bounds
from lightning_paf.types import Forward, Radius

_TRIES = 15  # most step sizes in each half of a line search
_SMALLEST_ALPHA = 1e-4  # step below which the width of the estimate shrinks
_PRECISION = 500  # distances are found to the initial width / 500
_SMALLEST_WIDTH = 1e-5  # smaller ones are not resolved in single precision
_BRACKET = 0.01  # relative step of the search for a boundary near a known one
_FARTHEST = 10.0  # its limit, in multiples of the known distance


class DirectionSearch(MinimalAttack):
    """Minimise g, the distance to the boundary as a function of the direction, by decisions.

    The start is the best of some Gaussian directions, compared by bisection. Each iteration estimates the gradient of
    g, then searches along it: the step doubles while g falls; if the first step fails, it shrinks to a quarter until
    one succeeds. If none does, the width of the estimate shrinks to a tenth.

    A step is rejected after one query where the image at the current distance is classified correctly; the authors'
    code measures g first. All images of a batch run in parallel, each with a separate budget.

    Args:
        eps: Largest l2 length of the perturbation that counts.
        queries: Decisions for each image; 20,000 in the authors' code of Sign-OPT.
        starts: Directions to choose the first one from.
        directions: Random directions in one estimate; null for 10 in OPT, 200 in Sign-OPT.
        alpha: First length of a step.
        width: Distance between the direction and those of an estimate.
        bounds: Smallest and largest pixel value; null for unbounded inputs.

    Raises:
        ValueError: As for every attack; no query, start or direction; a length that is not positive.
    """

    settings = ("queries", "starts", "directions", "alpha", "width")
    usual_directions: ClassVar[int] = 10

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        queries: int = 5000,
        starts: int = 100,
        directions: int | None = None,
        alpha: float = 0.2,
        width: float = 1e-3,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(eps, norm="l2", bounds=bounds)
        self.queries, self.starts, self.alpha, self.width = queries, starts, alpha, width
        self.directions = self.usual_directions if directions is None else directions
        self.require(queries=1, starts=1, directions=1)
        self.require_positive("alpha", "width")

    @abstractmethod
    def estimate(
        self, oracle: Decisions, rows: Tensor, directions: Tensor, distances: Tensor, widths: Tensor
    ) -> Tensor:
        """The gradient (n, D) of g, up to its length, at unit vectors (n, D) with distances g (n,).

        `rows` (n,) are the clean images, `widths` (n,) the distances of the random directions.
        """

    @torch.no_grad()
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images and distances."""
        oracle = Decisions(forward, x, y, self.queries, self.bounds)
        rows = oracle.first()
        theta, g = self._start(oracle, rows)
        rows, theta, g = rows[g.isfinite()], theta[g.isfinite()], g[g.isfinite()]
        alpha, width = torch.full_like(g, self.alpha), torch.full_like(g, self.width)
        while len(rows):
            gradient = self.estimate(oracle, rows, theta, g, width)
            theta, g, alpha = self._line_search(oracle, rows, theta, g, alpha, gradient)
            stalled = alpha < _SMALLEST_ALPHA
            alpha, width = torch.where(stalled, 1.0, alpha), torch.where(stalled, 0.1 * width, width)
            going = (oracle.left[rows] > 0) & (width >= _SMALLEST_WIDTH)
            rows, theta, g, alpha, width = rows[going], theta[going], g[going], alpha[going], width[going]
        return oracle.nearest.x, oracle.nearest.distances

    def distance(self, oracle: Decisions, rows: Tensor, guess: Tensor, directions: Tensor, wrong: Tensor) -> Tensor:
        """Distances g (n,) along directions (n, D), by bisection around a guess; infinite where there is no boundary.

        `rows` (n,) are the clean images; `wrong` (n,) is whether the image at the guess (n,) is misclassified. The
        interval grows by one percent at a time.
        """
        step = torch.where(wrong, 1 - _BRACKET, 1 + _BRACKET)
        inner, outer, crossed = guess, guess * step, torch.zeros_like(wrong)
        while True:
            inside = (outer < _FARTHEST * guess) & (outer > guess / _FARTHEST)
            index = (~crossed & inside & (oracle.left[rows] > 0)).nonzero().squeeze(1)
            if len(index) == 0:
                break
            same = oracle.wrong(rows[index], outer[index, None] * directions[index]) == wrong[index]
            crossed[index[~same]] = True
            inner, outer = inner.index_copy(0, index[same], outer[index[same]]), outer.clone()
            outer[index[same]] *= step[index[same]]
        low = torch.where(wrong, outer, inner)
        high = torch.where(wrong, inner, torch.where(crossed, outer, torch.inf))
        return oracle.between(rows, low, high, directions, self.width / _PRECISION)

    def _start(self, oracle: Decisions, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best of some Gaussian directions (n, D), and g there (n,), infinite where none leads to another class."""
        best = torch.zeros(len(rows), oracle.x[0].numel(), device=oracle.x.device)
        g = torch.full((len(rows),), torch.inf, device=oracle.x.device)
        for _ in range(self.starts):
            noise = torch.randn_like(best)
            theta, farthest = unit(noise), torch.minimum(g, noise.norm(dim=1))
            hits = oracle.wrong(rows, farthest[:, None] * theta).nonzero().squeeze(1)
            low, tolerance = torch.zeros_like(g[hits]), self.width / _PRECISION
            best[hits], g[hits] = theta[hits], oracle.between(rows[hits], low, farthest[hits], theta[hits], tolerance)
        return best, g

    def _line_search(
        self, oracle: Decisions, rows: Tensor, theta: Tensor, g: Tensor, alpha: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Directions, distances and step lengths after one iteration."""
        origin, theta, g, alpha = theta, theta.clone(), g.clone(), alpha.clone()
        growing = torch.ones_like(rows, dtype=torch.bool)
        moved = torch.zeros_like(growing)
        for _ in range(_TRIES):
            growing = self._try(oracle, rows, origin - alpha[:, None] * gradient, growing, theta, g)
            moved |= growing
            alpha = torch.where(growing, 2 * alpha, alpha)
            if not growing.any():
                break
        shrinking = ~moved
        for _ in range(_TRIES):
            if not shrinking.any():
                break
            alpha = torch.where(shrinking, 0.25 * alpha, alpha)
            shrinking &= ~self._try(oracle, rows, origin - alpha[:, None] * gradient, shrinking, theta, g)
        return theta, g, alpha

    def _try(self, oracle: Decisions, rows: Tensor, aims: Tensor, which: Tensor, theta: Tensor, g: Tensor) -> Tensor:
        """Update `theta` and `g` in place where the boundary is nearer along `aims`; return where that is (n,)."""
        index, better = which.nonzero().squeeze(1), torch.zeros_like(which)
        aims = unit(aims[index])
        hits = oracle.wrong(rows[index], g[index, None] * aims)
        index, aims = index[hits], aims[hits]
        found = self.distance(oracle, rows[index], g[index], aims, torch.ones_like(index, dtype=torch.bool))
        nearer = found < g[index]
        theta[index[nearer]], g[index[nearer]] = aims[nearer], found[nearer]
        better[index[nearer]] = True
        return better


class OPT(DirectionSearch):
    """Finite differences of the distance to the boundary (Cheng et al. 2019, "Query-efficient hard-label attack").

    Bisection along every random direction takes about fifteen queries. Directions without a boundary are left out.
    """

    def estimate(
        self, oracle: Decisions, rows: Tensor, directions: Tensor, distances: Tensor, widths: Tensor
    ) -> Tensor:
        """The mean of slope times direction."""
        total = torch.zeros_like(directions)
        for _ in range(self.directions):
            sideways = unit(torch.randn_like(directions))
            aims = unit(directions + widths[:, None] * sideways)
            wrong = oracle.wrong(rows, distances[:, None] * aims)
            found = self.distance(oracle, rows, distances, aims, wrong)
            total += torch.where(found.isfinite(), (found - distances) / widths, 0.0)[:, None] * sideways
        return total / self.directions


class SignOPT(DirectionSearch):
    """Signs of the slope of the distance to the boundary, with one query each (Cheng et al. 2020).

    Where the image along a random direction is misclassified at the current distance, the boundary is nearer there.
    The mean of sign times direction replaces the gradient.
    """

    usual_directions = 200

    def estimate(
        self, oracle: Decisions, rows: Tensor, directions: Tensor, distances: Tensor, widths: Tensor
    ) -> Tensor:
        """The mean of sign times direction."""
        sideways = unit(torch.randn(len(rows), self.directions, directions.shape[1], device=directions.device))
        aims = unit(directions[:, None] + widths[:, None, None] * sideways)
        owners = rows.repeat_interleave(self.directions)
        wrong = oracle.wrong(owners, (distances[:, None, None] * aims).flatten(0, 1))
        signs = torch.where(wrong, -1.0, 1.0).view(len(rows), -1, 1)
        return (signs * sideways).mean(dim=1)
