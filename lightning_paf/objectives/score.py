"""SCORE (Pang et al., 2022)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot, relu, softmax

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.trades import checked_weight


class SCORE(Objective):
    """TRADES with squared distances between distributions in place of cross-entropy and divergence (the LSE loss).

    `|p(x) - y|^2 + beta * relu(|p(x') - p(x)|^2 - clip)`, averaged over the batch; the attack maximises the second
    distance. A distance obeys the triangle inequality, which the divergence does not, and so does not pull clean
    accuracy down where the true distribution is itself invariant. Pang, Lin, Yang, Zhu, Yan, "Robustness and Accuracy
    Could Be Reconcilable by (Proper) Definition", ICML 2022.

    Args:
        beta: Weight of the second term; their command for WRN-28-10 says 4.
        clip: What the second term may be without being punished.

    Raises:
        ValueError: A negative weight or clip.
    """

    def __init__(self, beta: float = 4.0, clip: float = 0.0) -> None:
        super().__init__()
        self.beta = checked_weight("beta", beta, 4)
        if not 0 <= clip < math.inf:
            raise ValueError(f"clip must be a squared distance, >= 0, got {clip}. Pass --model.objective.clip 0.")
        self.clip = clip

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean squared error of the clean prediction + beta * mean squared distance of the adversarial one."""
        with torch.no_grad(), frozen(model, attack.mode):
            reference = softmax(model(x), 1)
        x_adv = attack(model, x, reference, loss=squared_distance)
        clean, adversarial = model(x), model(x_adv)
        target = y if y.is_floating_point() else one_hot(y, clean.shape[1]).to(clean.dtype)
        natural = squared_distance(clean, target).mean()
        robust = relu(squared_distance(adversarial, softmax(clean, 1)) - self.clip).mean()
        logs = {
            "natural_loss": natural.detach(),
            "distance": robust.detach(),
        }
        return StepResult(natural + self.beta * robust, adversarial, logs, clean)


def squared_distance(logits: Tensor, p: Tensor) -> Tensor:
    """`|softmax(logits) - p|^2`, (N,) in [0, 2], of logits (N, C) and distributions (N, C)."""
    return (softmax(logits, 1) - p).square().sum(1)
