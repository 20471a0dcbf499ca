"""The attack catalogue on one network: l2 distances at equal query budgets."""

import torch
from torch import Tensor

from lightning_paf.attacks import OPT, ZOO, Boundary, CarliniWagner, DeepFool, SignOPT
from lightning_paf.attacks.base import loss_and_gradient
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import DIAGONAL, distance_of
from lightning_paf.experiments.options import NATURAL
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.predictions import misclassified
from lightning_paf.loading import Run
from lightning_paf.nn.modes import frozen

QUERIES = 5000
IMAGES = 60


def _fgsm(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """l2 distance of the shortest signed step that fools the network."""
    x, y = x[:IMAGES], y[:IMAGES]
    found = torch.full((len(x),), DIAGONAL)
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


METRICS = {
    "carlini_wagner": distance_of(CarliniWagner(steps=400, searches=7, initial_c=1.0, lr=0.05), IMAGES),
    "deepfool": distance_of(DeepFool(), IMAGES),
    "fgsm": _fgsm,
    "sign_opt": distance_of(SignOPT(queries=QUERIES), IMAGES),
    "opt": distance_of(OPT(queries=QUERIES), IMAGES),
    "boundary": distance_of(Boundary(queries=QUERIES), IMAGES),
    "zoo": distance_of(ZOO(queries=QUERIES), IMAGES),
}

EXPERIMENT = Experiment(
    title="The attack catalogue (after Li et al., The American Statistician 2022)",
    variants=(Variant("natural", NATURAL),),
    claims=(
        _nearer("Carlini-Wagner comes nearer than DeepFool", "carlini_wagner", "deepfool", "paper"),
        _nearer("DeepFool comes nearer than the shortest signed step", "deepfool", "fgsm", "paper"),
        _nearer("Carlini-Wagner comes nearer than Sign-OPT", "carlini_wagner", "sign_opt"),
        _nearer("Sign-OPT comes nearer than OPT", "sign_opt", "opt", "paper"),
        _nearer("OPT comes nearer than the boundary attack", "opt", "boundary", "paper"),
        _nearer("The boundary attack comes nearer than ZOO", "boundary", "zoo"),
    ),
    metrics=METRICS,
    plain=tuple(METRICS),
    shown=tuple(METRICS),
    note=(
        f"All but the first three are l2 distances of the first {IMAGES} images: 0 for one that is misclassified, "
        f"{DIAGONAL:g} where nothing was found. Attacks without gradients make {QUERIES} queries per image."
    ),
)
