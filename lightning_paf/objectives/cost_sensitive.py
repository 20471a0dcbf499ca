"""Cost-sensitive training, which protects a class (Shen et al., 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_weight


class CostSensitive(Objective):
    """Cross-entropy plus the expected cost of a mistake, on clean images.

    `CE(x, y) + weight * sum_j C[j, y] softmax(f(x))_j`; the attack is not used. Shen, Chen, Wang, Wang, "Adversarial
    Learning with Cost-Sensitive Classes", arXiv 2021. With `L1MinusL2` around it, it is their CSE.

    Args:
        protected: The protected class. A mistake that involves it costs `cost`, any other mistake 1.
        cost: Cost of a mistake that involves the protected class; 10 in the paper's code.
        weight: Weight of the expected cost; 0 leaves the cross-entropy.
        matrix: All costs, instead of `protected` and `cost`: one row for each predicted class, one column for each
            true class, zeros on the diagonal.

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
        self.protected = protected
        self.cost = checked_weight("cost", cost, 10)
        self.weight = checked_weight("weight", weight, 1)
        self.matrix = None if matrix is None else _checked_matrix(matrix)
        self.register_buffer("costs", torch.empty(0), persistent=False)

    def bind(self, model: Classifier) -> None:
        """Build the cost matrix once the number of classes is known."""
        classes = model.num_classes
        if self.matrix is None:
            self.costs = cost_matrix(classes, self.protected, self.cost)
        elif len(self.matrix) == classes:
            self.costs = self.matrix.clone()
        else:
            raise ValueError(
                f"matrix must be {classes} x {classes}, with a row and a column per class, got {len(self.matrix)} x "
                f"{len(self.matrix)}. Pass {classes} rows of {classes} numbers as --model.objective.matrix."
            )

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean cost-sensitive loss of the training images."""
        logits = model(self.images(model, x, y, attack))
        loss = self.losses(logits, y).mean()
        return StepResult(loss, logits, {"expected_cost": self.expected_cost(logits.detach(), y).mean()})

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Images (N, C, H, W) to train on."""
        return x

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Loss (N,) of logits (N, K) that training minimises and attacks maximise."""
        return cross_entropy(logits, y) + self.weight * self.expected_cost(logits, y)

    def expected_cost(self, logits: Tensor, y: Tensor) -> Tensor:
        """Expected cost (N,) of logits (N, K) with labels (N,) or distributions (N, K)."""
        # Not a matrix product, which autocast would round to half precision.
        of_classes = (y[:, None] * self.costs).sum(2) if y.is_floating_point() else self.costs.T[y]
        return (logits.float().softmax(1) * of_classes).sum(1)


class CostSensitiveAT(CostSensitive):
    """Adversarial training with the cost-sensitive loss, also in the attack.

    Our variant of `CSA` for strong attacks, with one optimiser step per batch, as in PGD training.
    """

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Adversarial images of `x`."""
        return attack(model, x, y, loss=self.losses)


class CSA(CostSensitiveAT):
    """CSA: a clean and an adversarial optimiser step per batch.

    The adversarial images are those of the updated network. Both steps minimise the cost-sensitive loss (Shen et al.,
    see `CostSensitive`). The authors use FGSM and start from a network after FGSM training (`--model.init`).
    """

    steps_per_batch = 2
    _step = 0

    def begin_step(self, number: int) -> None:
        """Train on clean images first."""
        self._step = number

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Clean images in the first step, adversarial images in the second."""
        return x if self._step == 0 else super().images(model, x, y, attack)


def cost_matrix(num_classes: int, protected: int, cost: float) -> Tensor:
    """Cost matrix (K, K) that protects one class.

    It is `cost` in the row and column of the class, 1 elsewhere, 0 on the diagonal.

    Raises:
        ValueError: The class does not exist.
    """
    exists = 0 <= protected < num_classes
    checked("protected", protected, exists, f"a class from 0 to {num_classes - 1}", 0)
    costs = torch.ones(num_classes, num_classes)
    costs[protected], costs[:, protected] = cost, cost
    return costs.fill_diagonal_(0)


def _checked_matrix(matrix: Sequence[Sequence[float]]) -> Tensor:
    lengths = {len(row) for row in matrix}
    if lengths != {len(matrix)}:
        raise ValueError(
            f"matrix must be square, got {len(matrix)} rows of {sorted(lengths)} numbers. "
            "Pass --model.objective.matrix with one row and one column per class."
        )
    costs = torch.tensor(matrix, dtype=torch.float32)
    if not (torch.isfinite(costs).all() and (costs >= 0).all() and (costs.diagonal() == 0).all()):
        raise ValueError(
            f"matrix must be finite and >= 0, with zeros on the diagonal, got entries from {costs.min():g} to "
            f"{costs.max():g} and the diagonal {costs.diagonal().tolist()}. Correct --model.objective.matrix."
        )
    return costs
