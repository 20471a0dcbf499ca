"""TisODE and ODENet against a residual network of equal size."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks import FGSM, Square
from lightning_paf.experiments.experiment import Claim, Experiment, Metric, Variant
from lightning_paf.experiments.metrics import correct, margin_pgd, robust_to
from lightning_paf.experiments.options import NATURAL, objective
from lightning_paf.functional.corruptions import gaussian
from lightning_paf.loading import Run
from lightning_paf.nets.ode.block import ODEBlock

EPS = 0.1
LARGE_EPS = 0.2
NOISE = 0.3

_SIZE = ("--model.net.width", "16", "--model.net.groups", "8")


def _steady(weight: float) -> tuple[str, ...]:
    return objective("SteadyState", weight=weight, objective="Natural")


def noisy(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Whether each image is classified correctly with Gaussian noise."""
    torch.manual_seed(0)
    return correct(run.model, gaussian(x, NOISE), y)


def log_length(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Base-10 logarithm of the mean path length in the window of the penalty.

    For the CNN it is that of its only step.
    """
    net: Any = run.model.net
    caught: list[Tensor] = []
    with torch.no_grad(), net.stem.register_forward_hook(lambda _, __, z: caught.append(z)):
        run.model(x)
        blocks = [module for module in net.modules() if isinstance(module, ODEBlock)]
        lengths = [block.path_length(caught[0], 0.9 * block.t_end, 1.5 * block.t_end)[1] for block in blocks]
        steps = lengths or [(net.transform(caught[0]) - caught[0]).abs()]
        return torch.stack(steps).mean().log10()


def with_fine_steps(metric: Metric) -> Metric:
    """Compute a metric with RK4 and a quarter of the step length.

    An attack that succeeds here more often than with the steps of the training reveals masked gradients.
    """

    def fine(run: Run, x: Tensor, y: Tensor) -> Tensor:
        run = replace(run, module=copy.deepcopy(run.module))
        for block in run.model.modules():
            if isinstance(block, ODEBlock):
                block.step, block.solver = block.step / 4, "rk4"
        found: Tensor = metric(run, x, y)
        return found

    return fine


EXPERIMENT = Experiment(
    title="TisODE (Yan, Du, Tan, Feng, ICLR 2020)",
    variants=(
        Variant("cnn", (*NATURAL, "--model.net", "ResidualCNN", *_SIZE)),
        Variant("odenet", (*NATURAL, "--model.net", "ODENet", *_SIZE)),
        Variant("odenet-steady", (*_steady(0.1), "--model.net", "ODENet", *_SIZE)),
        Variant("invariant", (*NATURAL, "--model.net", "TisODENet", *_SIZE)),
        Variant("tisode", (*_steady(0.01), "--model.net", "TisODENet", *_SIZE)),
        Variant("tisode-strong", (*_steady(0.1), "--model.net", "TisODENet", *_SIZE)),
    ),
    claims=(
        Claim("ODENet is more robust to noise than the CNN", "odenet", "cnn", "noisy", source="paper"),
        Claim("ODENet is more robust to FGSM than the CNN", "odenet", "cnn", "fgsm", source="paper"),
        Claim("ODENet is more robust to PGD than the CNN", "odenet", "cnn", "pgd", source="paper"),
        Claim("ODENet is more robust to AutoAttack than the CNN", "odenet", "cnn", "autoattack"),
        Claim("TisODE is more robust to FGSM than ODENet", "tisode", "odenet", "fgsm", source="paper"),
        Claim("TisODE is more robust to PGD than ODENet", "tisode", "odenet", "pgd", source="paper"),
        Claim("TisODE is more robust to AutoAttack than ODENet", "tisode", "odenet", "autoattack"),
        Claim("A time-invariant field alone helps", "invariant", "odenet", "pgd", source="paper"),
        Claim("The penalty alone helps", "odenet-steady", "odenet", "pgd", source="paper"),
        Claim("The penalty shortens paths by five", "invariant", "tisode-strong", "log_length", by=0.7, source="paper"),
        Claim("PGD through finer steps finds at most 5 points more", "tisode", "tisode", "pgd_fine", -0.05, than="pgd"),
        Claim("Square finds less than PGD", "tisode", "tisode", "square", than="pgd"),
    ),
    metrics={
        "noisy": noisy,
        "fgsm": robust_to(FGSM(LARGE_EPS)),
        "pgd_large": robust_to(margin_pgd(LARGE_EPS)),
        "pgd_fine": with_fine_steps(robust_to(margin_pgd(EPS))),
        "square": robust_to(Square(EPS, queries=1000)),
        "log_length": log_length,
    },
    plain=("log_length",),
    shown=("clean", "noisy", "fgsm", "pgd", "square", "autoattack"),
    options=(
        *("--data.augment", "GaussianNoise", "--data.augment.stds", "[0.1, 0.2, 0.3]", "--model.normalize", "false"),
        *("--model.optimizer.lr", "0.001", "--trainer.max_epochs", "60"),
    ),
    eps=EPS,
    note=(
        f"No adversarial training. noisy: Gaussian noise {NOISE:g}. fgsm and pgd_large have eps {LARGE_EPS:g}, the "
        f"others {EPS:g}. pgd_fine attacks the same weights through RK4 with a quarter of the step length, where they "
        "are a slightly different network. log_length: base-10 logarithm of the mean path length from 0.9 to 1.5, for "
        "the CNN of its only step. The authors attack probabilities, which saturate, so their attacks are weaker."
    ),
)
