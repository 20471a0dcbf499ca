"""SCORE (Pang et al., 2022)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot, relu, softmax

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_weight


class SCORE(Objective):
    """SCORE: TRADES with squared distances between distributions (the LSE loss).

    `|p(x) - y|^2 + beta * relu(|p(x') - p(x)|^2 - clip)`, averaged over the batch; the attack maximises the second
    distance. Unlike the divergence, a distance obeys the triangle inequality, so it does not reduce clean accuracy if
    the true distribution is invariant. Pang, Lin, Yang, Zhu, Yan, "Robustness and Accuracy Could Be Reconcilable by
    (Proper) Definition", ICML 2022.

    Args:
        beta: Weight of the second term, >= 0; 4 in their command for WRN-28-10.
        clip: Value, >= 0, up to which the second distance has no cost.
    """

    def __init__(self, beta: float = 4.0, clip: float = 0.0) -> None:
        super().__init__()
        self.beta = checked_weight("beta", beta, 4)
        self.clip = checked("clip", clip, 0 <= clip < math.inf, "finite and >= 0", 0)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Squared error of clean predictions plus squared distance of adversarial ones."""
        with torch.no_grad(), frozen(model, attack.mode):
            reference = softmax(model(x), 1)
        x_adv = attack(model, x, reference, loss=squared_distance)
        clean, adversarial = model(x), model(x_adv)
        target = y if y.is_floating_point() else one_hot(y, clean.shape[1]).to(clean.dtype)
        natural = squared_distance(clean, target).mean()
        robust = relu(squared_distance(adversarial, softmax(clean, 1)) - self.clip).mean()
        logs = {"natural_loss": natural, "distance": robust}
        return StepResult(natural + self.beta * robust, adversarial, logs, clean)


def squared_distance(logits: Tensor, p: Tensor) -> Tensor:
    """`|softmax(logits) - p|^2`, (N,) in [0, 2], for distributions p (N, C)."""
    return (softmax(logits, 1) - p).square().sum(1)
