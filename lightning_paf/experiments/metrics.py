"""Metrics that several experiments share."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.attacks import Attack
    from lightning_paf.loading import Run


def margin_pgd(eps: float) -> "Attack":
    """PGD-20 in linf on the margin with three restarts: the metric `pgd`."""
    from lightning_paf.attacks import PGD, Restarts
    from lightning_paf.functional.losses import margin

    return Restarts(PGD(eps, step_size=eps / 8, steps=20, loss=margin), 3)


def withstands(run: "Run", x: "Tensor", y: "Tensor", attack: "Attack") -> Any:
    """Whether each image (N, C, H, W) is classified correctly, clean and attacked; (N,) bools."""
    import torch

    from lightning_paf.functional.predictions import misclassified

    torch.manual_seed(0)
    x_adv = attack(run.model, x, y)
    with torch.no_grad():
        return (~misclassified(run.model(x), y) & ~misclassified(run.model(x_adv), y)).cpu().numpy()
