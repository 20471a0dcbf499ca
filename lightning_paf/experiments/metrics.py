"""Metrics that several experiments share."""

import torch
from torch import Tensor, nn

from lightning_paf.attacks import PGD, Attack, MinimalAttack, Restarts
from lightning_paf.attacks.base import loss_and_gradient
from lightning_paf.experiments.experiment import Metric
from lightning_paf.functional.losses import cross_entropy, margin
from lightning_paf.functional.predictions import misclassified
from lightning_paf.loading import Run, load_run
from lightning_paf.nn.modes import frozen
from lightning_paf.runs.config_file import run_of

DIAGONAL = 8.0
"""Largest l2 distance of two 8x8 images, for attacks that find nothing."""


def margin_pgd(eps: float) -> Attack:
    """PGD-20 in linf on the margin with three restarts: the metric `pgd`."""
    return Restarts(PGD(eps, step_size=eps / 8, steps=20, loss=margin), 3)


def training_radius(run: Run) -> float:
    """Radius of the attack of the training."""
    attack: Attack = run.module.attack
    return attack.radius


def same_seed(run: Run, variant: str) -> nn.Module:
    """Model of another variant with the same seed, a surrogate for attacks."""
    folder = run_of(run.checkpoint).parent  # EXPERIMENT/VARIANT-SEED
    checkpoint = folder.parent / f"{variant}-{folder.name.rpartition('-')[2]}" / "run" / "checkpoints" / "last.ckpt"
    return load_run(checkpoint, device=str(run.device)).model


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


def robust_in_expectation(eps: float, draws: int) -> Metric:
    """Metric: whether each image is robust to PGD on expectations of a random network.

    Attack and evaluation average the probabilities of `draws` predictions (EOT, Athalye et al., 2018). With single
    predictions, some images would be misclassified by chance, and noise would hide the direction of the gradient.
    """

    def metric(run: Run, x: Tensor, y: Tensor) -> Tensor:
        def expected(z: Tensor) -> Tensor:
            return torch.stack([run.model(z).softmax(1) for _ in range(draws)]).mean(0).clamp_min(1e-30).log()

        x_adv = PGD(eps, step_size=eps / 8, steps=20, loss=margin)(run.model, x, y, forward=expected)
        with torch.no_grad(), frozen(run.model):
            return ~misclassified(expected(x), y) & ~misclassified(expected(x_adv), y)

    return metric


def distance_of(attack: MinimalAttack, images: int | None = None) -> Metric:
    """Metric: l2 distance of the adversarial examples of the first images."""

    def metric(run: Run, x: Tensor, y: Tensor) -> Tensor:
        return attack.nearest(run.model, x[:images], y[:images])[1].nan_to_num(posinf=DIAGONAL)

    return metric


def attack_success(attack: Attack, images: int | None = None) -> Metric:
    """Metric: fraction of the first images, if classified correctly, that it fools."""

    def metric(run: Run, x: Tensor, y: Tensor) -> float:
        robust = robust_to(attack)(run, x[:images], y[:images])
        return 1 - float(robust.sum() / correct(run.model, x[:images], y[:images]).sum())

    return metric


def empirical_lipschitz(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    """Mean l1 change of the logits under PGD-10 without random start, over eps (linf)."""
    x_adv = PGD(eps, step_size=eps / 4, steps=10, start="none")(model, x, y)
    with torch.no_grad():
        return float((model(x_adv) - model(x)).abs().sum(1).mean() / eps)


def average_radius(model: nn.Module, x: Tensor, y: Tensor, most: float, steps: int = 10, rounds: int = 10) -> float:
    """Smallest linf radius at which PGD succeeds, mean over correct predictions.

    Bisection of the radius of every image, by PGD without random start whose step is a quarter of the radius. The
    result is an upper bound of the distance to the boundary; NaN if no image is classified correctly.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits.
        x: Images (N, C, H, W).
        y: Labels (N,).
        most: Largest radius; images that are robust to it count with it.
        steps: Steps of PGD.
        rounds: Halvings; the error is at most `most / 2 ** (rounds + 1)` if success is monotonic in the radius.
    """
    with frozen(model):
        right = correct(model, x, y)
        x, y = x[right], y[right]
        low, high = torch.zeros(len(x), 1, 1, 1), torch.full((len(x), 1, 1, 1), most)
        for _ in range(rounds):
            radius = (low + high) / 2
            x_adv = x
            for _ in range(steps):
                _, gradient = loss_and_gradient(model, x_adv, y, cross_entropy)
                moved = x_adv - x + radius / 4 * gradient.sign()
                x_adv = (x + moved.clamp(-radius, radius)).clamp(0, 1)
            fooled = ~correct(model, x_adv, y).reshape(-1, 1, 1, 1)
            low, high = torch.where(fooled, low, radius), torch.where(fooled, radius, high)
    return float(((low + high) / 2).mean())
