"""Objectives around another objective."""

import math
from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.standard import AdversarialCE


class Wrapper(Objective):
    """Passes everything on to another objective; subclasses write `forward`, around the one here, and what they change.

    Args:
        objective: What is wrapped; null for adversarial training, `AdversarialCE` with `bn_statistics=adversarial`.
    """

    def __init__(self, objective: Objective | None = None) -> None:
        super().__init__()
        self.objective: Objective = objective or AdversarialCE(bn_statistics="adversarial")
        self.needs_double_backward = type(self).needs_double_backward or self.objective.needs_double_backward
        self.steps_per_batch = self.objective.steps_per_batch

    def bind(self, model: Classifier) -> None:
        """Bind the wrapped objective."""
        self.objective.bind(model)

    @abstractmethod  # by itself it would be the wrapped objective under another name
    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """What the wrapped objective says."""
        result: StepResult = self.objective(model, x, y, attack)
        return result

    def on_epoch_start(self, epoch: int, progress: float) -> None:
        """Pass it on."""
        self.objective.on_epoch_start(epoch, progress)

    def begin_step(self, number: int) -> None:
        """Pass it on."""
        self.objective.begin_step(number)

    def after_backward(self, model: Classifier) -> None:
        """Pass it on."""
        self.objective.after_backward(model)


class Regularised(Wrapper):
    """Another objective plus `weight` times a term; a weight of 0 is that objective, bit for bit.

    Subclasses write `term` and `name`, under which the term is logged.

    Args:
        objective: What the term is added to; null for adversarial training.
        weight: Of the term.

    Raises:
        ValueError: A negative weight.
    """

    name: ClassVar[str]

    def __init__(self, objective: Objective | None, weight: float) -> None:
        super().__init__(objective)
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"The weight of {type(self).__name__} is >= 0, but weight={weight}. "
                "Pass --model.objective.weight 0.1, or 0 for none."
            )
        self.weight = weight

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """The wrapped loss and the weighted term."""
        result = super().forward(model, x, y, attack)
        if self.weight == 0:
            return result
        term = self.term(model, x, y, attack)
        logs = {**result.logs, self.name: term.detach()}
        return replace(result, loss=result.loss + self.weight * term, logs=logs)

    @abstractmethod
    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """What is added, a scalar with its graph; arguments as in `forward`."""
