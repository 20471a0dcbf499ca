"""A penalty on the Jacobian of the logits (Hoffman et al., 2019), half of J-SIGR (Liu et al., 2024)."""

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import buffers_kept
from lightning_paf.objectives.base import Objective
from lightning_paf.objectives.standard import Natural
from lightning_paf.objectives.wrapper import Regularised


class JacobianNorm(Regularised):
    """An objective plus `weight` times the mean squared Frobenius norm of the Jacobian of the logits.

    A change d of the image moves the logits by at most that norm times |d|, to first order. Its square is estimated
    without bias from random directions in the space of logits: K times the squared length of the gradient of the logits
    along one, K being the number of classes. Hoffman, Roberts, Yaida, "Robust Learning with Jacobian Regularization",
    arXiv 2019; in J-SIGR (Liu, Wu et al., Pattern Recognition 2024) with `SelectiveInputGradient` around it, whose
    authors published neither code nor constants: the weight is ours. The Jacobian is that of the network in training
    mode; the pass that it takes moves no statistics of BatchNorm.

    Args:
        objective: What the term is added to; null for standard training.
        weight: Of the term. Logits are of the order of 10, pixels lie in [0, 1]: 0.01.
        projections: Random directions of each image; null for the exact norm, which takes a gradient for each class.

    Raises:
        ValueError: A negative weight, or no projection.
    """

    needs_double_backward = True
    name = "jacobian"

    def __init__(self, objective: Objective | None = None, weight: float = 0.01, projections: int | None = 1) -> None:
        super().__init__(objective or Natural(), weight)
        if projections is not None and projections < 1:
            raise ValueError(
                f"The norm needs at least 1 projection, but projections={projections}. "
                "Pass --model.objective.projections 1, or null for the exact norm."
            )
        self.projections = projections

    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Mean of the squared norms, or of their estimates."""
        x = x.detach().requires_grad_()
        with buffers_kept(model):
            logits = model(x)
        return squared_norm(logits, x, self.directions(logits)).mean()

    def directions(self, logits: Tensor) -> Tensor:
        """Unit vectors (directions, N, K) in the space of logits (N, K): random, or all coordinates."""
        images, classes = logits.shape
        if self.projections is None:
            return torch.eye(classes, device=logits.device)[:, None].expand(-1, images, -1)
        return torch.nn.functional.normalize(torch.randn(self.projections, *logits.shape, device=logits.device), dim=2)


def squared_norm(logits: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """Squared Frobenius norm (N,) of the Jacobian of each image, from its products with some directions.

    Args:
        logits: (N, K), with their graph.
        x: Images (N, C, H, W) that they were computed from.
        directions: Unit vectors (directions, N, K). All coordinates give the norm itself.

    Returns:
        With its graph.
    """
    gradients = [torch.autograd.grad((logits * v).sum(), x, create_graph=True)[0] for v in directions]
    lengths = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
    return lengths.mean(0) * logits.shape[1]
