"""The OPT attack."""

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.decisions import Decisions, unit
from lightning_paf.attacks.catalogue.direction_search import PRECISION, DirectionSearch


class OPT(DirectionSearch):
    """Finite differences of the distance to the boundary (Cheng et al. 2019, "Query-efficient hard-label attack").

    The distance along every random direction beside the present one is measured by bisection, which takes some fifteen
    decisions. Directions along which no boundary is found are left out. See `DirectionSearch`.

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

    def estimate(
        self, oracle: Decisions, rows: Tensor, directions: Tensor, distances: Tensor, widths: Tensor
    ) -> Tensor:
        """The mean of slope times direction."""
        total = torch.zeros_like(directions)
        for _ in range(self.directions):
            sideways = unit(torch.randn_like(directions))
            beside = unit(directions + widths[:, None] * sideways)
            wrong = oracle.wrong(rows, distances[:, None] * beside)
            low, high = self.bracket(oracle, rows, distances, beside, wrong)
            found = oracle.between(rows, low, high, beside, self.width / PRECISION)
            slope = torch.where(found.isfinite(), (found - distances) / widths, 0.0)
            total += slope[:, None] * sideways
        return total / self.directions
