"""The attack catalogue on one network: l2 distances, at equal budgets for attacks without gradients."""

from typing import TYPE_CHECKING

import torch

from lightning_paf.attacks import OPT, ZOO, Boundary, CarliniWagner, DeepFool, MinimalAttack, SignOPT
from lightning_paf.attacks.base import loss_and_gradient
from lightning_paf.experiments.experiment import Claim, Experiment, Metric, Variant
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import frozen

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.loading import Run

QUERIES = 5000
IMAGES = 60
NOTHING = 8.0
"""Distance if nothing was found: the diagonal of all 8x8 images."""


def _reached(attack: MinimalAttack) -> Metric:
    def metric(run: "Run", x: "Tensor", y: "Tensor") -> "Tensor":
        """l2 distance of the adversarial example, for the first images."""
        _, distances = attack.nearest(run.model, x[:IMAGES], y[:IMAGES])
        return distances.nan_to_num(posinf=NOTHING)

    return metric


def _fgsm(run: "Run", x: "Tensor", y: "Tensor") -> "Tensor":
    """l2 distance of the shortest signed step that misleads, for the first images."""
    x, y = x[:IMAGES], y[:IMAGES]
    found = torch.full((len(x),), NOTHING)
    with frozen(run.model):
        _, gradient = loss_and_gradient(run.model, x, y, cross_entropy)
        with torch.no_grad():
            for size in torch.linspace(0, 1, 201).flip(0):
                points = (x + size * gradient.sign()).clamp(0, 1)
                wrong = misclassified(run.model(points), y)
                found = torch.where(wrong, (points - x).flatten(1).norm(dim=1), found)
    return found


def _nearer(text: str, nearer: str, than: str, source: str = "expected") -> Claim:
    return Claim(text, "natural", "natural", than, source=source, than=nearer)


EXPERIMENT = Experiment(
    title="The attack catalogue (after Li et al., The American Statistician 2022)",
    variants=(Variant("natural", ("--model.objective", "Natural")),),
    claims=(
        _nearer("Carlini-Wagner comes nearer than DeepFool", "carlini_wagner", "deepfool", "paper"),
        _nearer("DeepFool comes nearer than the shortest signed step", "deepfool", "fgsm", "paper"),
        _nearer("Carlini-Wagner comes nearer than Sign-OPT", "carlini_wagner", "sign_opt"),
        _nearer("Sign-OPT comes nearer than OPT", "sign_opt", "opt", "paper"),
        _nearer("OPT comes nearer than the boundary attack", "opt", "boundary", "paper"),
        _nearer("The boundary attack comes nearer than ZOO", "boundary", "zoo"),
    ),
    metrics={
        "carlini_wagner": _reached(CarliniWagner(steps=400, searches=7, initial_c=1.0, lr=0.05)),
        "deepfool": _reached(DeepFool()),
        "fgsm": _fgsm,
        "sign_opt": _reached(SignOPT(queries=QUERIES)),
        "opt": _reached(OPT(queries=QUERIES)),
        "boundary": _reached(Boundary(queries=QUERIES)),
        "zoo": _reached(ZOO(queries=QUERIES)),
    },
    plain=("carlini_wagner", "deepfool", "fgsm", "sign_opt", "opt", "boundary", "zoo"),
    shown=("carlini_wagner", "deepfool", "fgsm", "sign_opt", "opt", "boundary", "zoo"),
    note=(
        f"All but the first three are l2 distances of the first {IMAGES} images: 0 for one that is misclassified, "
        f"{NOTHING:g} where nothing was found. Attacks without gradients make {QUERIES} queries per image."
    ),
)
