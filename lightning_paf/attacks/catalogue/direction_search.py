"""OPT and Sign-OPT, searches for the direction in which the boundary is nearest."""

from abc import abstractmethod
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.decisions import Decisions, unit
from lightning_paf.attacks.catalogue.minimal import MinimalAttack
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import Bounds
from lightning_paf.types import Forward, Radius

_MAX_STEPS = 15  # maximum number of step sizes tried when growing and when shrinking
_SMALLEST_ALPHA = 1e-4  # step below which the width of the estimate shrinks
_PRECISION = 500  # distances are found to the initial width / 500
_SMALLEST_WIDTH = 1e-5  # smaller ones are not resolved in single precision
_BRACKET = 0.01  # relative step of the search for a boundary near a known one
_MAX_RATIO = 10.0  # largest multiple of the known distance that is searched


class DirectionSearch(MinimalAttack):
    """Minimise the distance g(theta) to the decision boundary with hard-label queries.

    The start is the best of several Gaussian directions, compared by bisection. Each iteration estimates the gradient
    of g, then searches along it: the step doubles while g falls; if the first step fails, it shrinks to a quarter until
    one succeeds. If none does, the width of the estimate shrinks to a tenth.

    One query at the current distance decides whether g is smaller in the new direction; the authors' code first
    computes g by bisection. All images of a batch run in parallel, each with a separate budget.

    Args:
        eps: l2 radius within which a result counts as adversarial.
        queries: Query budget per image; 20,000 in the authors' code of Sign-OPT.
        starts: Number of random starting directions.
        directions: Random directions in one estimate; null for 10 in OPT, 200 in Sign-OPT.
        alpha: First length of a step.
        width: Finite-difference step of the gradient estimate.
        bounds: Smallest and largest pixel value; null for unbounded inputs.
        target: See `Attack`.

    Raises:
        ValueError: `queries`, `starts` or `directions` is below 1, or `alpha` or `width` is not positive; see also
            `Attack`.
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
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm="l2", bounds=bounds, target=target)
        self.queries, self.starts, self.alpha, self.width = queries, starts, alpha, width
        self.directions = self.usual_directions if directions is None else directions
        self.require(queries=1, starts=1, directions=1)
        self.require_positive("alpha", "width")

    @abstractmethod
    def estimate(
        self, decisions: Decisions, rows: Tensor, directions: Tensor, distances: Tensor, widths: Tensor
    ) -> Tensor:
        """Estimate the direction of the gradient of g at unit vectors.

        `rows` (n,) are the indices of the clean images, `directions` (n, D) have `distances` g (n,), and `widths` (n,)
        are the finite-difference steps.
        """

    @torch.no_grad()
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest adversarial images and their distances."""
        decisions = Decisions(forward, x, y, self.queries, self.bounds)
        rows = decisions.correct_rows()
        theta, g = self._start(decisions, rows)
        rows, theta, g = rows[g.isfinite()], theta[g.isfinite()], g[g.isfinite()]
        alpha, width = torch.full_like(g, self.alpha), torch.full_like(g, self.width)
        while len(rows):
            gradient = self.estimate(decisions, rows, theta, g, width)
            theta, g, alpha = self._line_search(decisions, rows, theta, g, alpha, gradient)
            stalled = alpha < _SMALLEST_ALPHA
            alpha, width = torch.where(stalled, 1.0, alpha), torch.where(stalled, 0.1 * width, width)
            active = (decisions.remaining[rows] > 0) & (width >= _SMALLEST_WIDTH)
            rows, theta, g, alpha, width = rows[active], theta[active], g[active], alpha[active], width[active]
        return decisions.nearest.x, decisions.nearest.distances

    def distance(self, decisions: Decisions, rows: Tensor, guess: Tensor, directions: Tensor, wrong: Tensor) -> Tensor:
        """Distances g (n,) along directions (n, D), by bisection around a guess.

        A distance is infinite if no boundary is found.

        `rows` (n,) are the indices of the clean images. `wrong` (n,) is the mask of guesses (n,) whose images are
        misclassified. The interval grows by one percent at a time.
        """
        step = torch.where(wrong, 1 - _BRACKET, 1 + _BRACKET)
        inner, outer, crossed = guess, guess * step, torch.zeros_like(wrong)
        while True:
            inside = (outer < _MAX_RATIO * guess) & (outer > guess / _MAX_RATIO)
            index = (~crossed & inside & (decisions.remaining[rows] > 0)).nonzero().squeeze(1)
            if len(index) == 0:
                break
            same = decisions.is_adversarial(rows[index], outer[index, None] * directions[index]) == wrong[index]
            crossed[index[~same]] = True
            inner, outer = inner.index_copy(0, index[same], outer[index[same]]), outer.clone()
            outer[index[same]] *= step[index[same]]
        low = torch.where(wrong, outer, inner)
        high = torch.where(wrong, inner, torch.where(crossed, outer, torch.inf))
        return decisions.bisect(rows, low, high, directions, self.width / _PRECISION)

    def _start(self, decisions: Decisions, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Best of several Gaussian directions (n, D), and its g (n,) or infinity."""
        best = torch.zeros(len(rows), decisions.x[0].numel(), device=decisions.x.device)
        g = torch.full((len(rows),), torch.inf, device=decisions.x.device)
        for _ in range(self.starts):
            noise = torch.randn_like(best)
            theta, farthest = unit(noise), torch.minimum(g, noise.norm(dim=1))
            fooled = decisions.is_adversarial(rows, farthest[:, None] * theta).nonzero().squeeze(1)
            low, tolerance = torch.zeros_like(g[fooled]), self.width / _PRECISION
            found = decisions.bisect(rows[fooled], low, farthest[fooled], theta[fooled], tolerance)
            best[fooled], g[fooled] = theta[fooled], found
        return best, g

    def _line_search(
        self, decisions: Decisions, rows: Tensor, theta: Tensor, g: Tensor, alpha: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return directions, distances and step lengths after one iteration."""
        origin, theta, g, alpha = theta, theta.clone(), g.clone(), alpha.clone()
        growing = torch.ones_like(rows, dtype=torch.bool)
        moved = torch.zeros_like(growing)
        for _ in range(_MAX_STEPS):
            growing = self._try(decisions, rows, origin - alpha[:, None] * gradient, growing, theta, g)
            moved |= growing
            alpha = torch.where(growing, 2 * alpha, alpha)
            if not growing.any():
                break
        shrinking = ~moved
        for _ in range(_MAX_STEPS):
            if not shrinking.any():
                break
            alpha = torch.where(shrinking, 0.25 * alpha, alpha)
            shrinking &= ~self._try(decisions, rows, origin - alpha[:, None] * gradient, shrinking, theta, g)
        return theta, g, alpha

    def _try(
        self, decisions: Decisions, rows: Tensor, candidates: Tensor, which: Tensor, theta: Tensor, g: Tensor
    ) -> Tensor:
        """Move to candidate directions with a smaller g, in place; return the moved rows."""
        index, improved = which.nonzero().squeeze(1), torch.zeros_like(which)
        candidates = unit(candidates[index])
        fooled = decisions.is_adversarial(rows[index], g[index, None] * candidates)
        index, candidates = index[fooled], candidates[fooled]
        found = self.distance(decisions, rows[index], g[index], candidates, torch.ones_like(index, dtype=torch.bool))
        nearer = found < g[index]
        theta[index[nearer]], g[index[nearer]] = candidates[nearer], found[nearer]
        improved[index[nearer]] = True
        return improved


class OPT(DirectionSearch):
    """OPT: gradient of g by finite differences (Cheng et al. 2019).

    "Query-efficient hard-label black-box attack".

    Bisection along every random direction takes about fifteen queries. Directions without a boundary are left out.
    """

    def estimate(
        self, decisions: Decisions, rows: Tensor, directions: Tensor, distances: Tensor, widths: Tensor
    ) -> Tensor:
        """Return the mean of slope times direction."""
        total = torch.zeros_like(directions)
        for _ in range(self.directions):
            sideways = unit(torch.randn_like(directions))
            candidates = unit(directions + widths[:, None] * sideways)
            wrong = decisions.is_adversarial(rows, distances[:, None] * candidates)
            found = self.distance(decisions, rows, distances, candidates, wrong)
            total += torch.where(found.isfinite(), (found - distances) / widths, 0.0)[:, None] * sideways
        return total / self.directions


class SignOPT(DirectionSearch):
    """Sign-OPT: signs of the slope of g, one query each (Cheng et al. 2020).

    If the image along a random direction is misclassified at the current distance, the boundary is nearer there.
    The mean of sign times direction replaces the gradient.
    """

    usual_directions = 200

    def estimate(
        self, decisions: Decisions, rows: Tensor, directions: Tensor, distances: Tensor, widths: Tensor
    ) -> Tensor:
        """Return the mean of sign times direction."""
        sideways = unit(torch.randn(len(rows), self.directions, directions.shape[1], device=directions.device))
        candidates = unit(directions[:, None] + widths[:, None, None] * sideways)
        owners = rows.repeat_interleave(self.directions)
        wrong = decisions.is_adversarial(owners, (distances[:, None, None] * candidates).flatten(0, 1))
        signs = torch.where(wrong, -1.0, 1.0).view(len(rows), -1, 1)
        return (signs * sideways).mean(dim=1)
