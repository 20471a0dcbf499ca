"""J-SIGR: penalties on the Jacobian and on input gradients (Liu et al., 2024)."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.input_gradient import input_gradient
from lightning_paf.functional.saliency import most_salient, perturbation_saliency
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import buffers_kept, frozen
from lightning_paf.objectives.base import Objective
from lightning_paf.objectives.checks import checked
from lightning_paf.objectives.standard import Natural
from lightning_paf.objectives.wrapper import Regularised


class JacobianNorm(Regularised):
    """Penalty on the mean squared Frobenius norm of the Jacobian of the logits.

    An objective plus `weight` times this term. To first order, a change d of the image moves the logits by at most the
    norm times |d|. Random directions in the space of K logits give an unbiased estimate of its square: K times the
    squared length of the gradient of the logits along a direction. Hoffman, Roberts, Yaida, "Robust Learning with
    Jacobian Regularization", arXiv 2019. With `SelectiveInputGradient` around it, it is J-SIGR (Liu, Wu et al., Pattern
    Recognition 2024), whose authors published neither code nor constants: we chose the weight. The Jacobian is that of
    the network in training mode; its extra pass does not update the statistics of BatchNorm.

    Args:
        objective: Objective to add the term to; null for standard training.
        weight: Weight of the term. Logits are of the order of 10, pixels lie in [0, 1]: 0.01.
        projections: Random directions per image, at least 1; null for the exact norm, which takes a gradient per class.
    """

    needs_double_backward = True
    name = "jacobian"

    def __init__(self, objective: Objective | None = None, weight: float = 0.01, projections: int | None = 1) -> None:
        super().__init__(objective or Natural(), weight)
        valid = projections is None or projections >= 1
        self.projections = checked("projections", projections, valid, "at least 1, or null for the exact norm", 1)

    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Mean of the squared norms, or of their estimates."""
        x = x.detach().requires_grad_()
        with buffers_kept(model):
            logits = model(x)
        return squared_norm(logits, x, self.directions(logits)).mean()

    def directions(self, logits: Tensor) -> Tensor:
        """Unit vectors (directions, N, K) in logit space: random, or all coordinates."""
        images, classes = logits.shape
        if self.projections is None:
            return torch.eye(classes, device=logits.device)[:, None].expand(-1, images, -1)
        return normalize(torch.randn(self.projections, *logits.shape, device=logits.device), dim=2)


def squared_norm(logits: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """Squared Frobenius norm (N,) of the Jacobian of logits (N, K) at images.

    It has a graph. The unit vectors `directions` (directions, N, K) give an estimate, all coordinates the exact norm.
    """
    gradients = [torch.autograd.grad((logits * v).sum(), x, create_graph=True)[0] for v in directions]
    lengths = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
    return lengths.mean(0) * logits.shape[1]


class SelectiveInputGradient(Regularised):
    """Penalty on the mismatch between input gradient and pixel saliency.

    An objective plus `weight` times this term. The saliency of a pixel is the change of the prediction when the image
    is blurred around it, measured in eval mode and not differentiated. J-SIGR is this around `JacobianNorm`: Liu, Wu,
    Li, Boussaid, Bennamoun, Xie, Liang, "Jacobian norm with Selective Input Gradient Regularization for interpretable
    adversarial defense", Pattern Recognition 2024. Their code is not public; we chose the forms, after their abstract,
    and all constants. The gradient is that of the network in training mode; its extra pass does not update the
    statistics of BatchNorm. Each step makes `grid` ** 2 passes without a gradient for the saliency.

    Args:
        objective: Objective to add the term to; null for standard training.
        mode: `mask`: the squared gradient of log p_y at the pixels of least saliency. `match`: the squared distance of
            the absolute gradient, summed over channels, and the saliency, each divided by its sum.
        quantile: Fraction of the pixels, in [0, 1], whose gradient is penalised in mode `mask`: those of least
            saliency. 0 penalises none, 1 is the input-gradient penalty of Ross and Doshi-Velez (2018) on log p_y.
        grid: Points in each direction, at least 1, at which the saliency is measured.
        window: Standard deviation of the blurred region, > 0, as a fraction of the image's height.
        blur: Standard deviation of the blur, > 0, as a fraction of the image's height.
        examples: Number of images per batch to compute the term on, an unbiased estimate at lower cost; null for all.
    """

    needs_double_backward = True
    name = "input_gradient"

    def __init__(
        self,
        objective: Objective | None = None,
        weight: float = 0.1,
        mode: Literal["mask", "match"] = "mask",
        quantile: float = 0.7,
        grid: int = 8,
        window: float = 0.125,
        blur: float = 0.125,
        examples: int | None = None,
    ) -> None:
        super().__init__(objective or Natural(), weight)
        height = "a fraction of the image's height, > 0"
        self.mode = checked("mode", mode, mode in ("mask", "match"), "mask or match", "mask")
        self.quantile = checked("quantile", quantile, 0 <= quantile <= 1, "a fraction of the pixels in [0, 1]", 0.7)
        self.grid = checked("grid", grid, grid >= 1, "at least 1", 8)
        self.window = checked("window", window, 0 < window < math.inf, height, 0.125)
        self.blur = checked("blur", blur, 0 < blur < math.inf, height, 0.125)
        self.examples = checked("examples", examples, examples is None or examples >= 1, "at least 1, or null", 8)

    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Mean over images of the squared gradient or distance."""
        x, y = x[: self.examples], y[: self.examples]
        with frozen(model):
            saliency = perturbation_saliency(model, x, self.grid, self.window, self.blur)
        with buffers_kept(model):
            gradient = input_gradient(model, x, y)
        if self.mode == "match":
            return (_normalised(gradient.abs().sum(1)) - _normalised(saliency)).square().sum((1, 2)).mean()
        return outside(gradient, most_salient(saliency, 1 - self.quantile))


def outside(gradient: Tensor, kept: Tensor) -> Tensor:
    """Mean squared norm of gradients (N, C, H, W) outside `kept`, bool (N, H, W)."""
    return (gradient * ~kept[:, None]).flatten(1).square().sum(1).mean()


def _normalised(saliency: Tensor) -> Tensor:
    """Maps (N, H, W), at least 0, divided by their sums; zero maps stay zero."""
    total = saliency.sum((1, 2), keepdim=True)
    return saliency / total.where(total > 0, 1.0)
