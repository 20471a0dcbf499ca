"""Random self-ensemble between clean and adversarial training, also under an attack on its expectation."""

import torch
from torch import Tensor

from lightning_paf.attacks import PGD
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.options import NATURAL, objective
from lightning_paf.functional.losses import margin
from lightning_paf.functional.predictions import misclassified
from lightning_paf.loading import Run
from lightning_paf.nn.modes import frozen

EPS = 0.2
PASSES = 4
DRAWS = 10
"""Calls that the attack and the final prediction average, each of all passes of an ensemble."""

_ENSEMBLE = (
    *("--model.net", "RandomSelfEnsemble", "--model.net.net", "SmallConvNet"),
    *("--model.net.first_std", "0.4", "--model.net.inner_std", "0.2", "--model.net.passes", str(PASSES)),
)


def eot(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Whether each image is robust to PGD on the expected prediction (EOT, Athalye et al., 2018).

    The result is that of an average of fresh draws. A single draw would misclassify some images by chance, and noisy
    gradients would hide the direction of the attack.
    """

    def expected(z: Tensor) -> Tensor:
        return torch.stack([run.model(z).softmax(1) for _ in range(DRAWS)]).mean(0).clamp_min(1e-30).log()

    attack = PGD(EPS, step_size=EPS / 8, steps=20, loss=margin)
    x_adv = attack(run.model, x, y, forward=expected)
    with torch.no_grad(), frozen(run.model):
        return ~misclassified(expected(x), y) & ~misclassified(expected(x_adv), y)


EXPERIMENT = Experiment(
    title="Random self-ensemble (Liu et al., ECCV 2018)",
    variants=(
        Variant("natural", NATURAL),
        Variant("rse", (*NATURAL, *_ENSEMBLE)),
        Variant("pgd"),
        Variant("trades", objective("TRADES")),
    ),
    claims=(
        Claim("Under PGD on expectations it is more robust than clean training", "rse", "natural", "eot"),
        Claim("... and less than PGD training", "pgd", "rse", "eot"),
        Claim("... and less than TRADES", "trades", "rse", "eot"),
        Claim("Under AutoAttack it is more robust than clean training", "rse", "natural", "autoattack"),
        Claim("... and less than PGD training", "pgd", "rse", "autoattack"),
        Claim("... and less than TRADES", "trades", "rse", "autoattack"),
        Claim("It costs clean accuracy", "natural", "rse", "clean"),
    ),
    metrics={"eot": eot},
    shown=("clean", "eot", "pgd", "autoattack"),
    options=("--model.normalize", "false"),
    eps=EPS,
    note=(
        f"eot: PGD-20 on the margin of probabilities averaged over {DRAWS} calls, which for the ensemble are "
        f"{PASSES * DRAWS} passes, evaluated with as many fresh ones. pgd and autoattack are the standard attacks: "
        "on a random network they count every image that the current draw misclassifies. The paper compares under "
        "C&W, where it finds the ensemble better than earlier defences. Noise 0.4 before the first convolution and "
        f"0.2 before the others, half of the values of the review by Li et al. for MNIST, and {PASSES} passes "
        "instead of 10 for time; not tuned."
    ),
)
