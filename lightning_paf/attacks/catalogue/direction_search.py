"""What OPT and Sign-OPT share: the search for the direction in which the boundary is nearest."""

from abc import abstractmethod
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.decisions import Decisions, unit
from lightning_paf.attacks.catalogue.minimal import MinimalAttack
from lightning_paf.functional.geometry import Bounds
from lightning_paf.types import Forward, Radius

_TRIES = 15  # most step sizes in each half of a line search
_LEAST_ALPHA = 1e-4  # below this step the estimate is made anew, with a smaller width
PRECISION = 500  # distances are found to the initial width / 500
_LEAST_WIDTH = 1e-5  # smaller ones are not resolved in single precision
_BRACKET = 0.01  # by which share the search for a boundary near a known one widens
_FARTHEST = 10.0  # how much further than the known one it may be


class DirectionSearch(MinimalAttack):
    """Minimises g, the distance to the boundary as a function of the direction, asking for decisions only.

    The start is the best of some Gaussian directions, compared by bisection. Each iteration estimates the gradient of
    g, then searches along it: the step doubles while g falls; if the first step fails, it shrinks to a quarter until
    one does. Where none does, the width of the estimate shrinks to a tenth.

    A step is refused after one query where the model is right at the present distance; the authors' code measures g
    first. All images of a batch go side by side, each with its own budget.

    Args:
        eps: Largest l2 length of the perturbation that counts.
        queries: Decisions for each image.
        starts: Directions to choose the first one from.
        directions: Random directions in one estimate.
        alpha: First length of a step.
        width: How far beside the direction an estimate looks.
        bounds: Smallest and largest pixel value; null for inputs without bounds.

    Raises:
        ValueError: As for every attack; no query, start or direction; a length that is not positive.
    """

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        queries: int = 5000,
        starts: int = 100,
        directions: int = 10,
        alpha: float = 0.2,
        width: float = 1e-3,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(eps, norm="l2", bounds=bounds)
        for name, value in (("alpha", alpha), ("width", width)):
            if not value > 0:
                raise ValueError(f"{name}={value} must be positive. Usual are alpha=0.2 and width=0.001.")
        self.queries = queries
        self.starts = starts
        self.directions = directions
        self.alpha = alpha
        self.width = width
        self.require(queries=1, starts=1, directions=1)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        names = ("queries", "starts", "directions", "alpha", "width")
        return super().describe() | {name: getattr(self, name) for name in names}

    @abstractmethod
    def estimate(
        self, oracle: Decisions, rows: Tensor, directions: Tensor, distances: Tensor, widths: Tensor
    ) -> Tensor:
        """The gradient of g, up to its length.

        Args:
            oracle: The model.
            rows: Which clean image (n,).
            directions: Where, unit vectors (n, D).
            distances: g there (n,).
            widths: How far beside it to look (n,).

        Returns:
            (n, D).
        """

    @torch.no_grad()
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images and distances."""
        oracle = Decisions(forward, x, y, self.queries, self.bounds)
        every = torch.arange(len(x), device=x.device)
        right = ~oracle.wrong(every, torch.zeros_like(x.flatten(1)))
        theta, g = self._start(oracle, every[right])
        rows, theta, g = every[right][g.isfinite()], theta[g.isfinite()], g[g.isfinite()]
        alpha, width = torch.full_like(g, self.alpha), torch.full_like(g, self.width)
        while len(rows):
            gradient = self.estimate(oracle, rows, theta, g, width)
            theta, g, alpha = self._line_search(oracle, rows, theta, g, alpha, gradient)
            tired = alpha < _LEAST_ALPHA
            alpha, width = torch.where(tired, 1.0, alpha), torch.where(tired, 0.1 * width, width)
            going = (oracle.left[rows] > 0) & (width >= _LEAST_WIDTH)
            rows, theta, g, alpha, width = rows[going], theta[going], g[going], alpha[going], width[going]
        return oracle.nearest.x, oracle.nearest.distances

    def _start(self, oracle: Decisions, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best of some Gaussian directions (n, D), and g there (n,), infinite where none leads to another class."""
        best = torch.zeros(len(rows), oracle.x[0].numel(), device=oracle.x.device)
        g = torch.full((len(rows),), torch.inf, device=oracle.x.device)
        for _ in range(self.starts):
            noise = torch.randn_like(best)
            theta, farthest = unit(noise), torch.minimum(g, noise.norm(dim=1))
            hits = oracle.wrong(rows, farthest[:, None] * theta).nonzero().squeeze(1)
            found = oracle.between(
                rows[hits], torch.zeros_like(g[hits]), farthest[hits], theta[hits], self.width / PRECISION
            )
            best[hits], g[hits] = theta[hits], found
        return best, g

    def _line_search(
        self, oracle: Decisions, rows: Tensor, theta: Tensor, g: Tensor, alpha: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Directions, distances and step lengths after one iteration."""
        origin, theta, g, alpha = theta, theta.clone(), g.clone(), alpha.clone()
        growing = torch.ones_like(rows, dtype=torch.bool)
        moved = torch.zeros_like(growing)
        for _ in range(_TRIES):
            nearer = self._try(oracle, rows, origin - alpha[:, None] * gradient, growing, theta, g)
            moved |= nearer
            growing = nearer
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
        """Take over, in place, the directions in which the boundary is nearer; which these are (n,)."""
        index, better = which.nonzero().squeeze(1), torch.zeros_like(which)
        aims = unit(aims[index])
        hits = oracle.wrong(rows[index], g[index, None] * aims)
        index, aims = index[hits], aims[hits]
        low, high = self.bracket(oracle, rows[index], g[index], aims, torch.ones_like(index, dtype=torch.bool))
        found = oracle.between(rows[index], low, high, aims, self.width / PRECISION)
        nearer = found < g[index]
        theta[index[nearer]], g[index[nearer]] = aims[nearer], found[nearer]
        better[index[nearer]] = True
        return better

    def bracket(
        self, oracle: Decisions, rows: Tensor, guess: Tensor, directions: Tensor, wrong: Tensor
    ) -> tuple[Tensor, Tensor]:
        """An interval around the boundary near a guess, widened by one percent at a time.

        Args:
            oracle: The model.
            rows: Which clean image (n,).
            guess: Distance to begin at (n,).
            directions: Unit vectors (n, D).
            wrong: Whether the model is wrong at the guess (n,).

        Returns:
            A distance where the model is right, as far as known, and one where it is wrong, infinite if none was found;
            (n,) each.
        """
        step = torch.where(wrong, 1 - _BRACKET, 1 + _BRACKET)
        here, there, crossed = guess, guess * step, torch.zeros_like(wrong)
        while True:
            inside = (there < _FARTHEST * guess) & (there > guess / _FARTHEST)
            index = (~crossed & inside & (oracle.left[rows] > 0)).nonzero().squeeze(1)
            if len(index) == 0:
                break
            same = oracle.wrong(rows[index], there[index, None] * directions[index]) == wrong[index]
            crossed[index[~same]] = True
            here, there = here.index_copy(0, index[same], there[index[same]]), there.clone()
            there[index[same]] *= step[index[same]]
        return torch.where(wrong, there, here), torch.where(wrong, here, torch.where(crossed, there, torch.inf))
