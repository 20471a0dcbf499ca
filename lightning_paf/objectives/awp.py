"""Adversarial weight perturbation, AWP (Wu et al., 2020)."""

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.replay import Recorded
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import buffers_kept
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_weight
from lightning_paf.objectives.wrapper import Wrapper
from lightning_paf.utils.distributed import mean_over_ranks

_SMALL = 1e-20
"""Avoids 0 / 0, so that a weight without gradient does not move."""


class AWP(Wrapper):
    """Another objective, minimised at weights that are perturbed against it.

    Before the gradient of a step is computed, every weight tensor W of two or more dimensions moves by `gamma * |W| * g
    / |g|`, where g is the gradient of the whole loss with respect to W, averaged over all devices. After the backward
    pass the original weights are restored exactly. The adversarial images are computed once, at the original weights.
    The extra pass updates neither the statistics of BatchNorm nor the buffers of the objective. It costs one more
    forward and backward pass. Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS
    2020.

    Args:
        objective: Objective to minimise: `--model.objective.objective TRADES`.
        gamma: Size of the perturbation relative to the weights, >= 0; 0.005 in the authors' TRADES-AWP.
        warmup: Fraction of the training, in [0, 1), before which weights are not perturbed; 10 of 200 epochs in the
            authors' TRADES-AWP. It ends with an epoch.
    """

    def __init__(self, objective: Objective, gamma: float = 0.005, warmup: float = 0.0) -> None:
        super().__init__(objective)
        self.gamma = checked_weight("gamma", gamma, 0.005)
        self.warmup = checked("warmup", warmup, 0 <= warmup < 1, "a fraction of training in [0, 1)", 0.05)
        self._active = warmup == 0
        self._unmoved: list[tuple[nn.Parameter, Tensor]] = []

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Start perturbing weights once the warm-up is over."""
        self._active = progress >= self.warmup
        super().on_epoch_start(epoch, progress)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Loss at the perturbed weights, which stay perturbed until `after_backward`."""
        self._restore()
        if not self._active or self.gamma == 0:
            return super().forward(model, x, y, attack)
        recorded = Recorded(attack)
        with buffers_kept(model, alone=False), buffers_kept(self.objective, alone=False):
            loss = super().forward(model, x, y, recorded).loss
            self._move(model, loss)
        recorded.rewind()
        return super().forward(model, x, y, recorded)

    def after_backward(self, model: Classifier) -> None:
        """Restore the weights."""
        self._restore()
        super().after_backward(model)

    def _move(self, model: Classifier, loss: Tensor) -> None:
        """Take one ascent step on the loss, without touching `.grad`."""
        parameters = [*model.parameters(), *self.objective.parameters()]
        weights = [weight for weight in parameters if weight.requires_grad and weight.ndim > 1]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        used = [(weight, g) for weight, g in zip(weights, gradients, strict=True) if g is not None]
        means = mean_over_ranks([gradient for _, gradient in used])
        with torch.no_grad():
            for (weight, _), gradient in zip(used, means, strict=True):
                self._unmoved.append((weight, weight.clone()))
                weight.add_(gradient * (self.gamma * weight.norm() / (gradient.norm() + _SMALL)))
        # Autocast caches the weights that it has rounded; the next pass must round the moved ones.
        torch.clear_autocast_cache()

    def _restore(self) -> None:
        with torch.no_grad():
            for weight, unmoved in self._unmoved:
                weight.copy_(unmoved)
        self._unmoved.clear()
