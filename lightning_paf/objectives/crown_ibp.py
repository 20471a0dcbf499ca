"""Certified training by linear and interval bounds (Zhang et al., 2020)."""

from torch import Tensor

from lightning_paf.nn.bounds.network import Network
from lightning_paf.nn.bounds.propagation import lower_bound, propagate
from lightning_paf.nn.bounds.region import Region
from lightning_paf.objectives.certified import Certified
from lightning_paf.objectives.checks import checked


class CROWNIBP(Certified):
    """CROWN-IBP: a mean of linear and interval bounds, at the end the latter only.

    Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", ICLR 2020. The weight of
    the linear bounds decreases linearly from 1 to 0 over the training.

    Args:
        clean_weight: As in `Certified`.
        crown_until: Fraction of the training after which only interval bounds are left, in (0, 1].

    Raises:
        ValueError: A number out of range.
    """

    def __init__(self, clean_weight: float = 0.3, crown_until: float = 0.7) -> None:
        super().__init__(clean_weight)
        self.crown_until = checked("crown_until", crown_until, 0 < crown_until <= 1, "in (0, 1]", 0.7)
        self.crown_weight = 1.0

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Update both weights."""
        super().on_epoch_start(epoch, progress)
        self.crown_weight = max(0.0, 1 - progress / self.crown_until)

    def margins(self, network: Network, region: Region, weights: Tensor) -> Tensor:
        """Mean of both bounds of the margins, (K, N)."""
        bounds = propagate(network, region, 0.0)
        margins = lower_bound(network, region, bounds, network.output, weights, 0.0, {}, network.activations)
        if self.crown_weight == 0:
            return margins
        linear = lower_bound(network, region, bounds, network.output, weights, 0.0, {})
        return self.crown_weight * linear + (1 - self.crown_weight) * margins
