"""A penalty that leaves few large weights and many small ones (Shen et al., 2022)."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective
from lightning_paf.objectives.first_layer_penalty import first_layer
from lightning_paf.objectives.wrapper import Regularised


class L1MinusL2(Regularised):
    """An objective plus `weight` times the sum of `|W|_1 - |W|_2` over some layers, W being all weights of a layer.

    It is 0 where at most one weight of a layer is not, and rewards what Shen, Chen, Wang, Wang, "Adversarial Learning
    with Cost-Sensitive Classes", arXiv 2021, call the Min-Max property: most weights near 0, a few large ones. Around
    `CostSensitive` it is their CSE. It does not depend on the images, so it changes no attack.

    Args:
        objective: What the penalty is added to; null for adversarial training.
        weight: Of the penalty; 1 in the paper's code. It grows with the number of weights in a layer.
        layers: Names of the layers in the network, such as `[conv1, conv2]`; null for the first one.

    Raises:
        ValueError: A negative weight, no layer. When the network is known: a name that it does not have, or of a layer
            without weights.
    """

    name = "l1_minus_l2"

    def __init__(
        self, objective: Objective | None = None, weight: float = 1.0, layers: Sequence[str] | None = None
    ) -> None:
        super().__init__(objective, weight)
        if layers is not None and (len(layers) == 0 or isinstance(layers, str)):
            raise ValueError(
                f"layers are names of one or more layers, but layers={layers!r}. "
                "Pass --model.objective.layers '[conv1, conv2]', or null for the first one."
            )
        self.layers = layers

    def bind(self, model: Classifier) -> None:
        """Refuse names that the network does not have."""
        super().bind(model)
        known = [name for name, layer in model.net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        wrong = [name for name in self.layers or () if name not in known]
        if wrong:
            raise ValueError(
                f"layers names convolutions and linear layers of the network, but {', '.join(wrong)} is none of "
                f"{', '.join(known)}. Correct --model.objective.layers."
            )

    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """The sum over the layers."""
        del x, y, attack
        names = self.layers
        layers = [first_layer(model)] if names is None else [model.net.get_submodule(name) for name in names]
        penalties = [l1_minus_l2(layer.weight) for layer in layers if isinstance(layer.weight, Tensor)]
        total = penalties[0]
        for penalty in penalties[1:]:
            total = total + penalty
        return total


def l1_minus_l2(weight: Tensor) -> Tensor:
    """`|W|_1 - |W|_2` of all entries: 0 for at most one that is not 0, `(n - sqrt(n)) |v|` for n equal ones."""
    return weight.abs().sum() - weight.flatten().norm()
