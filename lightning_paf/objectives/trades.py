"""TRADES (Zhang et al., 2019)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softmax

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy, kl_divergence
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.standard import checked_smoothing


class TRADES(Objective):
    """Clean cross-entropy plus `beta` times the divergence between clean and adversarial predictions.

    The attack maximises KL(p(x) || p(x')) with p(x) computed once; the published recipe attacks in evaluation mode from
    a small Gaussian (`--model.attack.start gaussian`), for l2 with the attack `L2Ascent`. In the loss the gradient
    flows into both predictions. Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy",
    ICML 2019.

    Args:
        beta: Weight of the divergence; the paper's 1/lambda. 6 for CIFAR-10, 5 in Wang et al. (2023).
        label_smoothing: Share of the clean target that is spread evenly over all classes.
        recompute_clean: Pass the clean images through the network a second time for the divergence, as the authors'
            code does. Only dropout and BatchNorm, which then counts the clean batch twice, can tell.

    Raises:
        ValueError: A negative weight.
    """

    def __init__(self, beta: float = 6.0, label_smoothing: float = 0.0, recompute_clean: bool = False) -> None:
        super().__init__()
        self.beta = checked_weight("beta", beta, 6)
        self.label_smoothing = checked_smoothing(label_smoothing)
        self.recompute_clean = recompute_clean

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean clean cross-entropy + beta * mean KL(clean || adversarial)."""
        x_adv = attack_prediction(model, x, attack)
        clean, adversarial = model(x), model(x_adv)
        natural = cross_entropy(clean, y, label_smoothing=self.label_smoothing).mean()
        reference = model(x) if self.recompute_clean else clean
        divergence = kl_divergence(adversarial, softmax(reference, 1)).mean()
        logs = {"natural_loss": natural.detach(), "divergence": divergence.detach()}
        return StepResult(natural + self.beta * divergence, adversarial, logs, clean)


def attack_prediction(model: Classifier, x: Tensor, attack: Attack) -> Tensor:
    """Images whose prediction diverges from that of `x`: the inner maximisation of TRADES.

    Args:
        model: The classifier, which is left as it is.
        x: Images (N, C, H, W).
        attack: Which maximises KL(p(x) || p(x')).
    """
    with torch.no_grad(), frozen(model, attack.mode):
        target = softmax(model(x), 1)
    return attack(model, x, target, loss=kl_divergence)


def checked_weight(name: str, weight: float, usual: float) -> float:
    """The same number, if a term of the loss can have it as its weight."""
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"{name} must be the weight of a term, >= 0, got {weight}. Pass --model.objective.{name} {usual}."
        )
    return weight
