"""LT-NODE and ALT-NODE against a NODE with fixed end time."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_paf.analysis.uncertainty import auroc, permuted, probabilities_of, rotated
from lightning_paf.attacks import FGSM, Square
from lightning_paf.experiments.experiment import Claim, Experiment, Metric, Variant
from lightning_paf.experiments.metrics import robust_in_expectation, robust_to
from lightning_paf.experiments.options import NATURAL, objective
from lightning_paf.functional.calibration import calibration, entropy
from lightning_paf.loading import Run
from lightning_paf.nets.ode.ltnode import LatentEndTimeNet

EPS = 0.1
DRAWS = 4
"""Random predictions averaged by the adaptive attack and by its evaluation."""

_SIZE = (
    *("--model.net.width", "16", "--model.net.groups", "8", "--model.net.downsamplings", "0"),
    *("--model.net.solver", "euler"),
)


def ood_entropy(shift: Callable[[Tensor], Tensor]) -> Metric:
    """Metric: entropy of each image after a shift out of the distribution."""
    return lambda run, x, y: entropy(probabilities_of(run.model, shift(x)))


def ood_auroc(shift: Callable[[Tensor], Tensor]) -> Metric:
    """Metric: AUROC of the entropy for images after a shift against test images."""
    return lambda run, x, y: auroc(*(entropy(probabilities_of(run.model, z)) for z in (x, shift(x))))


def clean_entropy(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Entropy of each image."""
    return entropy(probabilities_of(run.model, x))


def score(name: str) -> Metric:
    """Metric: a value of `calibration`."""
    return lambda run, x, y: calibration(probabilities_of(run.model, x), y)[name]


def eot(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Mask of images robust to PGD on expectations over random end times.

    The result is that of new draws. A NODE has none, and is attacked itself.
    """
    nets = [module for module in run.model.modules() if isinstance(module, LatentEndTimeNet)]
    before = [net.random for net in nets]
    try:
        for net in nets:
            net.random = True
        torch.manual_seed(0)
        robust: Tensor = robust_in_expectation(EPS, DRAWS)(run, x, y)
        return robust
    finally:
        for net, random in zip(nets, before, strict=True):
            net.random = random


def _better(name: str, variant: str) -> tuple[Claim, ...]:
    return (
        Claim(f"{name} loses at most 1 point of accuracy", variant, "node", "clean", by=-0.01, source="paper"),
        Claim(f"{name} has more entropy on permuted images", variant, "node", "entropy_permuted", source="paper"),
        Claim(f"{name} has more entropy on rotated images", variant, "node", "entropy_rotated", source="paper"),
        Claim(f"{name} detects permuted images better", variant, "node", "auroc_permuted", source="paper"),
        Claim(f"{name} detects rotated images better", variant, "node", "auroc_rotated", source="paper"),
        Claim(f"{name} is more robust to FGSM", variant, "node", "fgsm", source="paper"),
        Claim(f"{name} is more robust to PGD on expectations", variant, "node", "eot", source="paper"),
        Claim(f"{name} is more robust to AutoAttack", variant, "node", "autoattack"),
        Claim(f"Square finds less than PGD against {name}", variant, variant, "square", than="pgd"),
    )


EXPERIMENT = Experiment(
    title="LT-NODE and ALT-NODE (Anumasa and Srijith, AAAI 2022)",
    variants=(
        Variant("node", (*NATURAL, "--model.net", "NODE", *_SIZE)),
        Variant("lt-node", (*objective("ELBO"), "--model.net", "LTNODE", *_SIZE)),
        Variant("alt-node", (*objective("ELBO", kl_weight=0.1), "--model.net", "ALTNODE", *_SIZE)),
    ),
    claims=(*_better("LT-NODE", "lt-node"), *_better("ALT-NODE", "alt-node")),
    metrics={
        "fgsm05": robust_to(FGSM(EPS / 2)),
        "fgsm": robust_to(FGSM(EPS)),
        "fgsm2": robust_to(FGSM(2 * EPS)),
        "eot": eot,
        "square": robust_to(Square(EPS, queries=1000)),
        "nll": score("nll"),
        "brier": score("brier"),
        "ece": score("ece"),
        "entropy": clean_entropy,
        "entropy_permuted": ood_entropy(permuted),
        "entropy_rotated": ood_entropy(rotated),
        "auroc_permuted": ood_auroc(permuted),
        "auroc_rotated": ood_auroc(rotated),
    },
    plain=("nll", "brier", "ece", "entropy", "entropy_permuted", "entropy_rotated"),
    shown=("clean", "fgsm", "eot", "pgd", "autoattack", "auroc_permuted", "auroc_rotated"),
    options=("--model.normalize", "false", "--model.optimizer.lr", "0.01", "--trainer.max_epochs", "20"),
    eps=EPS,
    note=(
        f"No adversarial training. fgsm, pgd, square, eot and autoattack have eps {EPS:g}, fgsm05 {EPS / 2:g} and "
        f"fgsm2 {2 * EPS:g}. All except eot attack predictions at quantiles of the end time, which are deterministic. "
        f"eot: PGD-20 on the margin of probabilities averaged over {DRAWS} predictions at random end times, evaluated "
        "with new ones. The authors' radii are in units of normalised images. AUROC: of the entropy, for test images "
        "against the same images with permuted pixels or rotated by 90 degrees. All networks have one 3x3 convolution "
        "before the ODE, and Euler steps of 0.1. `node` ends at 1."
    ),
)
