"""Metrics that several experiments share."""

import torch
from torch import Tensor, nn

from lightning_paf.attacks import PGD, Attack, MinimalAttack, Restarts
from lightning_paf.experiments.experiment import Metric
from lightning_paf.functional.losses import margin
from lightning_paf.functional.predictions import misclassified
from lightning_paf.loading import Run

DIAGONAL = 8.0
"""Largest l2 distance of two 8x8 images, for attacks that find nothing."""


def margin_pgd(eps: float) -> Attack:
    """PGD-20 in linf on the margin with three restarts: the metric `pgd`."""
    return Restarts(PGD(eps, step_size=eps / 8, steps=20, loss=margin), 3)


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Whether each image (N, C, H, W) is classified correctly; (N,) bools."""
    return ~misclassified(model(x), y)


def robust_to(attack: Attack) -> Metric:
    """Metric: whether each image is classified correctly, clean and attacked."""

    def metric(run: Run, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(0)
        x_adv = attack(run.model, x, y)
        return correct(run.model, x, y) & correct(run.model, x_adv, y)

    return metric


def distance_of(attack: MinimalAttack, images: int | None = None) -> Metric:
    """Metric: l2 distance of the adversarial examples of the first images."""

    def metric(run: Run, x: Tensor, y: Tensor) -> Tensor:
        return attack.nearest(run.model, x[:images], y[:images])[1].nan_to_num(posinf=DIAGONAL)

    return metric
