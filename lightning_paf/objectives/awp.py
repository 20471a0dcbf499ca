"""Adversarial weight perturbation, AWP (Wu et al., 2020)."""

import math

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.replay import Recorded
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import buffers_kept
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.utils.distributed import mean_over_ranks

_SMALL = 1e-20
"""Keeps 0 / 0 a zero: a weight without gradient stays."""


class AWP(Objective):
    """Another objective, minimised where the weights are moved against it.

    Before the gradient of a step is computed, every weight tensor W of two or more dimensions moves by `gamma * |W| * g
    / |g|`, g being the gradient of the whole loss by W, the mean over all devices; after the backward pass it is put
    back exactly. The adversarial images are found once, at the unmoved weights; the first evaluation moves neither
    statistics of BatchNorm nor what the objective keeps. It costs one more evaluation with its gradient. Wu, Xia, Wang,
    "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020.

    Args:
        objective: What is minimised: `--model.objective.objective TRADES`.
        gamma: Size of the step relative to the weights; 0.005 in the authors' TRADES-AWP.
        warmup: Share of the training before which weights are not moved; 10 of 200 epochs in the authors' TRADES-AWP.
            It ends with an epoch.

    Raises:
        ValueError: A negative gamma, or a share outside [0, 1).
    """

    def __init__(self, objective: Objective, gamma: float = 0.005, warmup: float = 0.0) -> None:
        super().__init__()
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be a relative size, >= 0, got {gamma}. Pass --model.objective.gamma 0.005.")
        if not 0 <= warmup < 1:
            raise ValueError(
                f"warmup must be a fraction of training in [0, 1), got {warmup}. Pass --model.objective.warmup 0.05."
            )
        self.objective = objective
        self.gamma = gamma
        self.warmup = warmup
        self.needs_double_backward = objective.needs_double_backward
        self.steps_per_batch = objective.steps_per_batch
        self._active = warmup == 0
        self._unmoved: list[tuple[nn.Parameter, Tensor]] = []

    def bind(self, model: Classifier) -> None:
        """Let the objective build what it needs."""
        self.objective.bind(model)

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Begin to move weights once the warm-up is over."""
        self._active = progress >= self.warmup
        self.objective.on_epoch_start(epoch, progress)

    def begin_step(self, number: int) -> None:
        """Tell the objective."""
        self.objective.begin_step(number)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """The loss of the objective at the moved weights, which stay moved until `after_backward`."""
        self._put_back()
        if not self._active or self.gamma == 0:
            return self._result(model, x, y, attack)
        recorded = Recorded(attack)
        with buffers_kept(model, alone=False), buffers_kept(self.objective, alone=False):
            loss = self._result(model, x, y, recorded).loss
            self._move(model, loss)
        recorded.rewind()
        return self._result(model, x, y, recorded)

    def after_backward(self, model: Classifier) -> None:
        """Put the weights back."""
        self._put_back()
        self.objective.after_backward(model)

    def _result(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        result: StepResult = self.objective(model, x, y, attack)
        return result

    def _move(self, model: Classifier, loss: Tensor) -> None:
        """One step of ascent on the loss. `.grad` is not touched."""
        known = [*model.parameters(), *self.objective.parameters()]
        weights = [weight for weight in known if weight.requires_grad and weight.ndim > 1]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        used = [(weight, g) for weight, g in zip(weights, gradients, strict=True) if g is not None]
        means = mean_over_ranks([gradient for _, gradient in used])
        with torch.no_grad():
            for (weight, _), gradient in zip(used, means, strict=True):
                self._unmoved.append((weight, weight.clone()))
                weight.add_(gradient * (self.gamma * weight.norm() / (gradient.norm() + _SMALL)))
        # Autocast keeps the weights that it has rounded; the next pass must round the moved ones.
        torch.clear_autocast_cache()

    def _put_back(self) -> None:
        with torch.no_grad():
            for weight, unmoved in self._unmoved:
                weight.copy_(unmoved)
        self._unmoved.clear()
