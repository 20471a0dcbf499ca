"""Mixup of images, hidden activations or losses within a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Coefficient and partners of mixed examples (Zhang et al. 2018, "mixup").

    Attributes:
        coefficient: Mixing coefficient (lambda in the paper) of the example itself, in [0, 1].
        partners: Indices (N,) of the examples to mix in, with weight `1 - coefficient`.
    """

    coefficient: float
    partners: Tensor

    def __call__(self, batch: Tensor) -> Tensor:
        """Mix examples (N, ...); a coefficient of 1 leaves them unchanged."""
        return self.coefficient * batch + (1 - self.coefficient) * batch[self.partners]


def draw_mixture(examples: int, alpha: float, device: torch.device) -> Mixture:
    """Draw a mixing coefficient from Beta(alpha, alpha), and a permutation.

    Args:
        examples: Size of the batch.
        alpha: At least 0.01, or 0 for no mixing.
        device: Device of the batch.
    """
    # On the CPU, since reading a number from a GPU would synchronise it; in double precision, since the two gamma
    # variates of a small alpha are tiny.
    pair = torch.full((2,), alpha, dtype=torch.float64)
    drawn = float(torch.distributions.Beta(*pair).sample()) if alpha > 0 else 1.0
    # Exchanging examples and partners only reorders the mixed batch. With the larger coefficient, the example's label
    # stays the more likely one, so that the training accuracy remains meaningful.
    return Mixture(max(drawn, 1 - drawn), torch.randperm(examples, device=device))
