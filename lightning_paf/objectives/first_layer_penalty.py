"""A penalty on the weights of the first layer (Li et al., 2022)."""

from typing import Literal

from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective
from lightning_paf.objectives.checks import checked
from lightning_paf.objectives.wrapper import Regularised


class FirstLayerPenalty(Regularised):
    """An objective plus `weight` times the size of the first layer's weights.

    One of the tricks that keep FGSM training from catastrophic overfitting: Li, Liu, Wang, Zhou, Xie, "Bag of Tricks
    for FGSM Adversarial Training", arXiv 2022. The abstract only names the trick; we chose the forms and the weight.
    The first layer is the first convolution or linear layer, in the order of the network's definition. Ordinary weight
    decay acts on it as well.

    Args:
        kind: `l2`, the sum of all squared weights; or `l1gain`, the mean over filters of the sum of absolute weights,
            the largest change of a filter's output per unit of linf perturbation of the layer's input.
    """

    name = "first_layer"

    def __init__(
        self, objective: Objective | None = None, weight: float = 0.01, kind: Literal["l2", "l1gain"] = "l2"
    ) -> None:
        super().__init__(objective, weight)
        self.kind = checked("kind", kind, kind in ("l2", "l1gain"), "l2 or l1gain", "l2")

    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Size of the first layer's weights."""
        weight = first_layer(model).weight
        return weight.square().sum() if self.kind == "l2" else weight.flatten(1).abs().sum(dim=1).mean()


def first_layer(model: nn.Module) -> nn.Conv2d | nn.Linear:
    """The first convolution or linear layer, in the order of the network's definition."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
