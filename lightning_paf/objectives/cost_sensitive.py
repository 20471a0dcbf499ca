"""Cost-sensitive training, which protects a class (Shen et al., 2021)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult


class CostSensitive(Objective):
    """Cross-entropy plus the expected cost of a mistake, on clean images; the attack is not used.

    `CE(x, y) + weight * sum_j C[j, y] softmax(f(x))_j`. Shen, Chen, Wang, Wang, "Adversarial Learning with
    Cost-Sensitive Classes", arXiv 2021. With `L1MinusL2` around it, it is their CSE.

    Args:
        protected: The class that is protected: to take it for another, or another for it, costs `cost`, any other
            mistake 1.
        cost: Of such a mistake; 10 in the paper's code.
        weight: Of the expected cost; 0 leaves the cross-entropy.
        matrix: All costs, in place of `protected` and `cost`: one row for each predicted class, one column for each
            true class, zeros in the diagonal.

    Raises:
        ValueError: A negative weight or cost; a matrix that is not square, has negative entries or a diagonal that is
            not zero. When the network is known: a matrix of another size, or a class that does not exist.
    """

    costs: Tensor

    def __init__(
        self,
        protected: int = 0,
        cost: float = 10.0,
        weight: float = 1.0,
        matrix: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        for name, value, usual in (("cost", cost, 10), ("weight", weight, 1)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be >= 0, got {value}. Pass --model.objective.{name} {usual}.")
        self.protected = protected
        self.cost = cost
        self.weight = weight
        self.matrix = None if matrix is None else _checked_matrix(matrix)
        self.register_buffer("costs", torch.empty(0), persistent=False)

    def bind(self, model: Classifier) -> None:
        """Make the cost matrix once the number of classes is known."""
        classes = model.num_classes
        if self.matrix is None:
            self.costs = cost_matrix(classes, self.protected, self.cost)
        elif len(self.matrix) == classes:
            self.costs = self.matrix.clone()
        else:
            raise ValueError(
                f"The cost matrix has one row and column for each of the {classes} classes, but "
                f"--model.objective.matrix has {len(self.matrix)}. Give {classes} rows of {classes} numbers."
            )

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cost-sensitive loss of the images that are trained on."""
        x = self.images(model, x, y, attack)
        logits = model(x)
        return StepResult(
            self.losses(logits, y).mean(), logits, {"expected_cost": self.expected_cost(logits.detach(), y).mean()}
        )

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """The images (N, C, H, W) that the network is trained on."""
        del model, y, attack
        return x

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss (N,) that is minimised, and that attacks increase.

        Args:
            logits: (N, K).
            y: Labels (N,), or distributions over the classes (N, K).
        """
        return cross_entropy(logits, y) + self.weight * self.expected_cost(logits, y)

    def expected_cost(self, logits: Tensor, y: Tensor) -> Tensor:
        """What the predicted probabilities cost, (N,); arguments as for `losses`."""
        # Not as a matrix product, which autocast would round to half precision.
        of_classes = (y[:, None] * self.costs).sum(2) if y.is_floating_point() else self.costs.T[y]
        return (logits.float().softmax(1) * of_classes).sum(1)


class CostSensitiveAT(CostSensitive):
    """Adversarial training with the cost-sensitive loss, which the attack increases, too: one step a batch.

    Ours, for strong attacks: with PGD it is to `CSA` what PGD training is to FGSM training.

    Args:
        protected: The class that is protected, see `CostSensitive`.
        cost: Of mistakes that involve it.
        weight: Of the expected cost; 0 leaves adversarial training.
        matrix: All costs, in place of `protected` and `cost`.

    Raises:
        ValueError: See `CostSensitive`.
    """

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """What the attack makes of `x`."""
        return attack(model, x, y, loss=self.losses)


class CSA(CostSensitiveAT):
    """Two optimiser steps a batch: one on the clean images, one on the adversarial images of the network after it.

    Both with the cost-sensitive loss (Shen et al., see `CostSensitive`). The authors use FGSM and begin with a network
    that FGSM training has made (`--model.init`).

    Args:
        protected: The class that is protected, see `CostSensitive`.
        cost: Of mistakes that involve it.
        weight: Of the expected cost.
        matrix: All costs, in place of `protected` and `cost`.

    Raises:
        ValueError: See `CostSensitive`.
    """

    steps_per_batch = 2
    _step = 0

    def begin_step(self, number: int) -> None:
        """Clean images first."""
        self._step = number

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """The images, then what the attack makes of them."""
        return x if self._step == 0 else super().images(model, x, y, attack)


def cost_matrix(num_classes: int, protected: int, cost: float) -> Tensor:
    """Costs (K, K) that protect one class: `cost` in its row and column, 1 elsewhere, 0 in the diagonal.

    Raises:
        ValueError: There is no such class.
    """
    if not 0 <= protected < num_classes:
        raise ValueError(
            f"The protected class is one of 0 to {num_classes - 1}, but protected={protected}. "
            "Pass --model.objective.protected 0."
        )
    costs = torch.ones(num_classes, num_classes)
    costs[protected], costs[:, protected] = cost, cost
    return costs.fill_diagonal_(0)


def _checked_matrix(matrix: Sequence[Sequence[float]]) -> Tensor:
    lengths = {len(row) for row in matrix}
    if lengths != {len(matrix)}:
        raise ValueError(
            f"A cost matrix is square, but --model.objective.matrix has {len(matrix)} rows of {sorted(lengths)} "
            "numbers. Give one row and one column for each class."
        )
    costs = torch.tensor(matrix, dtype=torch.float32)
    if not (torch.isfinite(costs).all() and (costs >= 0).all() and (costs.diagonal() == 0).all()):
        raise ValueError(
            f"Costs are >= 0, and 0 in the diagonal, where the prediction is right, but --model.objective.matrix has "
            f"entries from {costs.min():g} to {costs.max():g} and the diagonal {costs.diagonal().tolist()}. Correct it."
        )
    return costs
