"""The decoupled and improved Kullback-Leibler losses (Cui et al., 2023)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softmax

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_weight
from lightning_paf.objectives.trades import attack_prediction
from lightning_paf.utils.distributed import sum_over_ranks


class IKL(Objective):
    """Improved KL loss: TRADES with the KL divergence split into two terms.

    The terms are weighted squares of logit differences and a soft cross-entropy.

    `CE(x) + beta/4 * sum_jk w_j w_k (D_jk - D'_jk)^2 - alpha * sum_k p_k(x) log p_k(x')` with D_jk = z_j - z_k of the
    clean and the adversarial logits, and p(x) constant in the last term. With w = p(x), the adversarial logits constant
    in the square, and alpha = beta = 1, the two terms have the gradients of KL(p(x) || p(x')). The improved loss
    differs in two points: w is the mean softened prediction of the previous epoch for the class of the image, and both
    logits get gradients from the square. The attack is that of TRADES. Cui et al., "Decoupled Kullback-Leibler
    Divergence Loss", arXiv 2023.

    Args:
        alpha: Weight of the soft cross-entropy, >= 0; 4 on CIFAR-10, 3 with 20M synthetic images.
        beta: Weight of the squares, >= 0; 20 on CIFAR-10, 10 with 20M synthetic images.
        temperature: Divides the logits in the mean prediction of a class, > 0.
    """

    prior: Tensor
    sums: Tensor
    epoch: Tensor

    def __init__(self, alpha: float = 4.0, beta: float = 20.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha = checked_weight("alpha", alpha, 4)
        self.beta = checked_weight("beta", beta, 20)
        self.temperature = checked("temperature", temperature, 0 < temperature < math.inf, "finite and > 0", 4)

    def bind(self, model: Classifier) -> None:
        """Start with equal weights for all classes."""
        classes = model.num_classes
        like = model.head.weight
        self.register_buffer("prior", like.new_full((classes, classes), 1 / classes, requires_grad=False))
        self.register_buffer("sums", like.new_zeros((classes, classes), requires_grad=False))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64, device=like.device))

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Use the mean predictions of the finished epoch as class weights.

        A class without images keeps its weights.
        """
        if epoch > int(self.epoch):
            totals = self.sums.sum(1, keepdim=True)
            self.prior.copy_(torch.where(totals > 0, self.sums / totals.clamp_min(1e-12), self.prior))
            self.sums.zero_()
            self.epoch.fill_(epoch)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Clean cross-entropy plus weighted squares and soft cross-entropy."""
        x_adv = attack_prediction(model, x, attack)
        clean, adversarial = model(x), model(x_adv)
        target = (y if y.is_floating_point() else one_hot(y, clean.shape[1])).to(self.prior)
        squares = self.squares(clean, adversarial, target).mean()
        soft = cross_entropy(adversarial, softmax(clean.detach(), 1)).mean()
        natural = cross_entropy(clean, y).mean()
        self._accumulate(target, clean.detach())
        logs = {"natural_loss": natural, "squares": squares, "soft_cross_entropy": soft}
        return StepResult(natural + self.beta * squares + self.alpha * soft, adversarial, logs, clean)

    def squares(self, clean: Tensor, adversarial: Tensor, target: Tensor) -> Tensor:
        """Weighted squares of logit differences (N,), in the precision of `prior`."""
        with torch.autocast(clean.device.type, enabled=False):  # it would round weights and sums to half precision
            return weighted_squares(clean.to(self.prior), adversarial.to(self.prior), target @ self.prior)

    @torch.no_grad()
    def _accumulate(self, target: Tensor, logits: Tensor) -> None:
        """Add the predictions of a batch, of all ranks, to the sums of their classes."""
        with torch.autocast(logits.device.type, enabled=False):
            predictions = softmax(logits.to(self.sums) / self.temperature, 1)
            self.sums += sum_over_ranks(target.T @ predictions)


def weighted_squares(logits: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """Weighted squares (N,) of logit differences, without forming the differences.

    `1/4 sum_jk w_j w_k ((z_j - z_k) - (z'_j - z'_k))^2` for `logits` z, `others` z' and `weight` w, all (N, C).
    """
    difference = (logits - others).to(weight.dtype)
    centre = (weight * difference).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    return 0.5 * weight.sum(1) * (weight * (difference - centre).square()).sum(1)
