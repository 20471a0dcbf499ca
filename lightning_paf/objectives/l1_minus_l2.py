"""A penalty that leaves few large weights and many small ones (Shen et al., 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective
from lightning_paf.objectives.wrapper import Regularised


class L1MinusL2(Regularised):
    """An objective plus `weight` times the sum of `|W|_1 - |W|_2` over some layers, W being all weights of a layer.

    It is 0 where at most one weight of a layer is not, and rewards what Shen, Chen, Wang, Wang, "Adversarial Learning
    with Cost-Sensitive Classes", arXiv 2021, call the Min-Max property: most weights near 0, a few large ones. Around
    `CostSensitive` it is their CSE. It does not depend on the images, so it changes no attack.

    Args:
        objective: What the penalty is added to; null for adversarial training.
        weight: Of the penalty; 1 in the paper's code. It grows with the number of weights in a layer.
        layers: How many convolutions and linear layers, counted from the image on; or names of layers in the network,
            such as `[conv1, conv2]`.

    Raises:
        ValueError: A negative weight, no layer. When the network is known: fewer layers than asked for, or a name that
            is not that of a convolution or linear layer.
    """

    name = "l1_minus_l2"

    def __init__(
        self, objective: Objective | None = None, weight: float = 1.0, layers: int | Sequence[str] = 1
    ) -> None:
        super().__init__(objective, weight)
        if isinstance(layers, str | bool) or not (layers if isinstance(layers, int) else len(layers)) > 0:
            raise ValueError(
                f"layers must be a number >= 1 or a list of names, got {layers!r}. "
                "Pass --model.objective.layers 2, or '[conv1, conv2]'."
            )
        self.layers = layers

    def bind(self, model: Classifier) -> None:
        """Refuse layers that the network does not have."""
        super().bind(model)
        known = _layers(model)
        if isinstance(self.layers, int):
            missing = f"{self.layers} of them are" if self.layers > len(known) else ""
        else:
            wrong = ", ".join(name for name in self.layers if name not in known)
            missing = f"{wrong} is" if wrong else ""
        if missing:
            raise ValueError(
                f"The penalty is on convolutions and linear layers of the network, but {missing} asked for, and it has "
                f"{', '.join(known)}. Correct --model.objective.layers."
            )

    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """The sum over the layers."""
        del x, y, attack
        known = _layers(model)
        names = list(known)[: self.layers] if isinstance(self.layers, int) else self.layers
        return torch.stack([l1_minus_l2(known[name].weight) for name in names]).sum()


def _layers(model: Classifier) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers of the network by name, in the order of its definition."""
    return {name: layer for name, layer in model.net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def l1_minus_l2(weight: Tensor) -> Tensor:
    """`|W|_1 - |W|_2` of all entries: 0 for at most one that is not 0, `(n - sqrt(n)) |v|` for n equal ones."""
    norm: Tensor = torch.linalg.vector_norm(weight)
    return weight.abs().sum() - norm
