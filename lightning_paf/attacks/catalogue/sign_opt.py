"""The Sign-OPT attack."""

from fractions import Fraction

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.decisions import Decisions, unit
from lightning_paf.attacks.catalogue.direction_search import DirectionSearch
from lightning_paf.functional.geometry import Bounds
from lightning_paf.types import Radius


class SignOPT(DirectionSearch):
    """Signs of the slope of the distance to the boundary, one decision each (Cheng et al. 2020).

    If the model is wrong beside the present direction at the present distance, the boundary is nearer there. The mean
    of sign times direction over many directions takes the place of the gradient. See `DirectionSearch`.

    Args:
        eps: Largest l2 length of the perturbation that counts.
        queries: Decisions for each image; 20,000 in the authors' code.
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
        directions: int = 200,
        alpha: float = 0.2,
        width: float = 1e-3,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(
            eps, queries=queries, starts=starts, directions=directions, alpha=alpha, width=width, bounds=bounds
        )

    def estimate(
        self, oracle: Decisions, rows: Tensor, directions: Tensor, distances: Tensor, widths: Tensor
    ) -> Tensor:
        """The mean of sign times direction."""
        sideways = unit(torch.randn(len(rows), self.directions, directions.shape[1], device=directions.device))
        beside = unit(directions[:, None] + widths[:, None, None] * sideways)
        owners = rows.repeat_interleave(self.directions)
        wrong = oracle.wrong(owners, (distances[:, None, None] * beside).flatten(0, 1))
        signs = torch.where(wrong, -1.0, 1.0).view(len(rows), -1, 1)
        return (signs * sideways).mean(dim=1)
