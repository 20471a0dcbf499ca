"""Penalty for a few large weights among many small ones (Shen et al., 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective
from lightning_paf.objectives.checks import checked
from lightning_paf.objectives.wrapper import Regularised


class L1MinusL2(Regularised):
    """Penalty on `|W|_1 - |W|_2` for the weights W of each of some layers.

    An objective plus `weight` times the sum over the layers. The penalty is 0 if at most one weight of a layer is not
    0, and favours the Min-Max property of Shen, Chen, Wang, Wang, "Adversarial Learning with Cost-Sensitive Classes",
    arXiv 2021: most weights near 0, a few large ones. Around `CostSensitive` it is their CSE. It does not depend on the
    images, so it changes no attack.

    Args:
        weight: Weight of the penalty; 1 in the paper's code. The penalty grows with the number of weights in a layer.
        layers: Number of convolutions and linear layers, counted from the image; or names of layers in the network,
            such as `[conv1, conv2]`.

    Raises:
        ValueError: A negative weight, no layer. When the network is known: it has fewer layers, or a name is not that
            of a convolution or linear layer.
    """

    name = "l1_minus_l2"

    def __init__(
        self, objective: Objective | None = None, weight: float = 1.0, layers: int | Sequence[str] = 1
    ) -> None:
        super().__init__(objective, weight)
        valid = not isinstance(layers, str | bool) and (layers if isinstance(layers, int) else len(layers)) > 0
        self.layers = checked("layers", layers, valid, "a number >= 1 or a list of names", "2")

    def bind(self, model: Classifier) -> None:
        """Check that the network has these layers."""
        super().bind(model)
        names = [*_layers(model)]
        valid = self.layers <= len(names) if isinstance(self.layers, int) else {*self.layers} <= {*names}
        checked("layers", self.layers, valid, f"at most {len(names)}, or names among {', '.join(names)}", 1)

    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Sum over the layers."""
        known = _layers(model)
        names = list(known)[: self.layers] if isinstance(self.layers, int) else self.layers
        return torch.stack([l1_minus_l2(known[name].weight) for name in names]).sum()


def _layers(model: Classifier) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers of the network by name, in definition order."""
    return {name: layer for name, layer in model.net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def l1_minus_l2(weight: Tensor) -> Tensor:
    """`|W|_1 - |W|_2` of all entries; 0 if at most one is not 0."""
    norm: Tensor = torch.linalg.vector_norm(weight)
    return weight.abs().sum() - norm
