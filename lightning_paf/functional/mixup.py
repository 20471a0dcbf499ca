"""Convex combinations within a batch, of images, of hidden activations, and of losses."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Who is mixed with whom, and how much (Zhang et al. 2018, "mixup").

    Attributes:
        share: Of each example itself, in [0, 1]; one number for the batch.
        partners: Numbers (N,) of the examples that make up the rest.
    """

    share: float
    partners: Tensor

    def __call__(self, batch: Tensor) -> Tensor:
        """Mix examples (N, ...); at a share of 1 they are what they were."""
        return self.share * batch + (1 - self.share) * batch[self.partners]


def draw_mixture(examples: int, alpha: float, device: torch.device) -> Mixture:
    """Draw a share from Beta(alpha, alpha) and a permutation.

    Args:
        examples: Size of the batch.
        alpha: At least 0.01, or 0, which mixes nothing.
        device: Of the batch.
    """
    # On the CPU, as a number that the program needs at once: a device would make it wait.
    # In double precision: for a small alpha, the two gamma variates behind it are tiny.
    pair = torch.full((2,), alpha, dtype=torch.float64)
    drawn = float(torch.distributions.Beta(*pair).sample()) if alpha > 0 else 1.0
    # Exchanging an example and its partner renames the mixed examples, no more. With the larger share its own, an
    # example keeps its label as the more likely one, and the training accuracy means something.
    return Mixture(max(drawn, 1 - drawn), torch.randperm(examples, device=device))
