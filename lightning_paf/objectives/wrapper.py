"""Objectives around another objective."""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked_weight
from lightning_paf.objectives.standard import AdversarialCE


class Wrapper(Objective):
    """Base of objectives around another one: forwards every call.

    Subclasses override `forward` and call it.

    Args:
        objective: The wrapped objective; null for adversarial training, `AdversarialCE` with
            `bn_statistics=adversarial`.
    """

    def __init__(self, objective: Objective | None = None) -> None:
        super().__init__()
        self.objective: Objective = objective or AdversarialCE(bn_statistics="adversarial")
        self.needs_double_backward = type(self).needs_double_backward or self.objective.needs_double_backward
        self.steps_per_batch = self.objective.steps_per_batch

    def bind(self, model: Classifier) -> None:
        """Bind the wrapped objective."""
        self.objective.bind(model)

    @abstractmethod  # a wrapper that changes nothing must not be listed as an objective
    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Result of the wrapped objective."""
        result: StepResult = self.objective(model, x, y, attack)
        return result

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Forward the call."""
        self.objective.on_epoch_start(epoch, progress)

    def begin_step(self, number: int) -> None:
        """Forward the call."""
        self.objective.begin_step(number)

    def after_backward(self, model: Classifier) -> None:
        """Forward the call."""
        self.objective.after_backward(model)


class Regularised(Wrapper):
    """Another objective plus `weight` times a penalty.

    A weight of 0 is that objective, bit for bit.

    Subclasses define `term` and `name`, under which the term is logged.

    Args:
        objective: Objective to add the term to; null for adversarial training.
        weight: Weight of the term, >= 0.
    """

    name: ClassVar[str]

    def __init__(self, objective: Objective | None, weight: float) -> None:
        super().__init__(objective)
        self.weight = checked_weight("weight", weight, 0.1)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Wrapped loss plus the weighted term."""
        result = super().forward(model, x, y, attack)
        if self.weight == 0:
            return result
        term = self.term(model, x, y, attack)
        return replace(result, loss=result.loss + self.weight * term, logs={**result.logs, self.name: term})

    @abstractmethod
    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Term to add, a scalar with its graph; arguments as in `forward`."""
