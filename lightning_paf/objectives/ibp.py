"""Certified training by interval bounds (Gowal et al., 2018)."""

from torch import Tensor

from lightning_paf.nn.bounds.network import Network
from lightning_paf.nn.bounds.propagation import lower_bound, propagate
from lightning_paf.nn.bounds.region import Region
from lightning_paf.objectives.certified import Certified


class IBP(Certified):
    """Interval bound propagation, with the last linear layers merged into the margins.

    Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models", 2018.

    Args:
        clean_weight: As in `Certified`; decreases to 0.5 in the paper.
    """

    def margins(self, network: Network, region: Region, weights: Tensor) -> Tensor:
        """Interval bounds of the margins, (K, N)."""
        bounds = propagate(network, region, 0.0)
        return lower_bound(network, region, bounds, network.output, weights, 0.0, {}, network.activations)
