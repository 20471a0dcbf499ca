"""Random self-ensemble between clean and adversarial training, also under an attack on its expectation."""

from typing import TYPE_CHECKING, Any

from lightning_paf.experiments.experiment import Arm, Claim, Study

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.loading import Run

EPS = 0.2
PASSES = 4
DRAWS = 10
"""Calls that the attack and the verdict on its images average, each of all passes of an ensemble."""

_NATURAL = ("--model.objective", "Natural")
_ENSEMBLE = (
    "--model.net",
    "RandomSelfEnsemble",
    "--model.net.net",
    "SmallConvNet",
    "--model.net.first_std",
    "0.4",
    "--model.net.inner_std",
    "0.2",
    "--model.net.passes",
    str(PASSES),
)


def eot(run: "Run", x: "Tensor", y: "Tensor") -> Any:
    """Whether each image withstands PGD on the expected prediction, by the expected prediction (Athalye et al., 2018).

    An average of fresh draws decides, so that luck counts for neither side: not that of an image which one draw of
    many misclassifies, nor that of a network whose noise hides the way.
    """
    import torch

    from lightning_paf.attacks import PGD
    from lightning_paf.functional.losses import margin
    from lightning_paf.functional.predictions import misclassified
    from lightning_paf.nn.modes import frozen

    def expected(z: "Tensor") -> "Tensor":
        return torch.stack([run.model(z).softmax(1) for _ in range(DRAWS)]).mean(0).clamp_min(1e-30).log()

    attack = PGD(EPS, step_size=EPS / 8, steps=20, loss=margin)
    x_adv = attack(run.model, x, y, forward=expected)
    with torch.no_grad(), frozen(run.model):
        right = ~misclassified(expected(x), y) & ~misclassified(expected(x_adv), y)
    return right.cpu().numpy()


STUDY = Study(
    title="Random self-ensemble (Liu et al., ECCV 2018)",
    arms=(
        Arm("natural", _NATURAL),
        Arm("rse", (*_NATURAL, *_ENSEMBLE)),
        Arm("pgd"),
        Arm("trades", ("--model.objective", "TRADES")),
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
    measures={"eot": eot},
    shown=("clean", "eot", "pgd", "autoattack"),
    options=("--model.normalize", "false"),
    eps=EPS,
    note=(
        f"eot: PGD-20 on the margin of probabilities averaged over {DRAWS} calls, which for the ensemble are "
        f"{PASSES * DRAWS} passes, judged by as many fresh ones. pgd and autoattack are the standard attacks: on a "
        "random network they count every image that the draw of the moment misclassifies. The paper compares under "
        "C&W, where it finds the ensemble better than earlier defences. Noise 0.4 before the first convolution and 0.2 "
        f"before the others, half of what the review by Li et al. takes for MNIST, and {PASSES} passes instead of 10 "
        "for time; not tuned."
    ),
)
