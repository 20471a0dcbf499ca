"""TRADES (Zhang et al., 2019)."""

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

    The attack maximises KL(p(x) || p(x')) with p(x) computed once, in evaluation mode; the published recipe starts it
    from a small Gaussian (`--model.attack.start gaussian`). Zhang et al., "Theoretically Principled Trade-off between
    Robustness and Accuracy", ICML 2019.

    Args:
        beta: Weight of the divergence; the paper's 1/lambda. 6 for CIFAR-10, 5 in Wang et al. (2023).
        label_smoothing: Share of the clean target that is spread evenly over all classes.

    Raises:
        ValueError: A negative weight.
    """

    def __init__(self, beta: float = 6.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if beta < 0:
            raise ValueError(
                f"beta is the weight of a divergence, >= 0, but beta={beta}. Pass --model.objective.beta 6."
            )
        self.beta = beta
        self.label_smoothing = checked_smoothing(label_smoothing)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean clean cross-entropy + beta * mean KL(clean || adversarial)."""
        with torch.no_grad(), frozen(model, attack.mode):
            target = softmax(model(x), 1)
        x_adv = attack(model, x, target, loss=kl_divergence)
        clean, adversarial = model(x), model(x_adv)
        natural = cross_entropy(clean, y, label_smoothing=self.label_smoothing).mean()
        divergence = kl_divergence(adversarial, softmax(clean, 1)).mean()
        logs = {"natural_loss": natural.detach(), "divergence": divergence.detach()}
        return StepResult(natural + self.beta * divergence, adversarial, logs, clean)
