"""J-SIGR under transfer attacks, and its saliency maps."""

from torch import Tensor

from lightning_paf.analysis.saliency import compare_saliency
from lightning_paf.attacks import EnsembleMIFGSM
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import correct, same_seed
from lightning_paf.experiments.options import NATURAL, objective
from lightning_paf.loading import Run

EPS = 0.2
_SURROGATE = "surrogate"


def transfer(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Mask of images robust to MI-FGSM on the surrogate with the same seed."""
    x_adv = EnsembleMIFGSM([same_seed(run, _SURROGATE)], eps=EPS)(run.model, x, y)
    return correct(run.model, x_adv, y)


def overlap(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Overlap of gradient saliency and perturbation saliency of each image."""
    return compare_saliency(run.model, x).overlap


EXPERIMENT = Experiment(
    title="J-SIGR (Liu et al., Pattern Recognition 2024), a reconstruction",
    variants=(
        Variant(_SURROGATE, (*NATURAL, "--model.net.width", "32")),
        Variant("natural", NATURAL, after=(_SURROGATE,)),
        Variant("jacobian", objective("JacobianNorm"), after=(_SURROGATE,)),
        Variant("selective", objective("SelectiveInputGradient"), after=(_SURROGATE,)),
        Variant("jsigr", objective("SelectiveInputGradient", objective="JacobianNorm"), after=(_SURROGATE,)),
        Variant("pgd", after=(_SURROGATE,)),
    ),
    claims=(
        Claim(
            "J-SIGR is more robust to transfer attacks than PGD training",
            more="jsigr",
            less="pgd",
            metric="transfer",
            source="paper",
        ),
        Claim("J-SIGR is more robust to transfer attacks than clean training", "jsigr", "natural", "transfer"),
        Claim("J-SIGR is more robust to transfer attacks than the Jacobian norm", "jsigr", "jacobian", "transfer"),
        Claim("The Jacobian norm alone is more robust than clean training", "jacobian", "natural", "transfer"),
        Claim(
            "Gradients agree more with saliency after J-SIGR than after clean training",
            more="jsigr",
            less="natural",
            metric="overlap",
            source="paper",
        ),
        Claim("Gradients agree more with saliency than with the Jacobian norm alone", "jsigr", "jacobian", "overlap"),
        Claim("Under white-box attacks, PGD training is more robust", "pgd", "jsigr", "autoattack"),
        Claim("Under white-box attacks, J-SIGR is more robust than clean training", "jsigr", "natural", "autoattack"),
    ),
    metrics={"transfer": transfer, "overlap": overlap},
    shown=("clean", "transfer", "autoattack", "overlap"),
    eps=EPS,
    note=(
        "The authors published neither code nor constants: we chose forms and weights, without tuning. transfer: "
        "momentum FGSM, 10 steps, on a wider network trained on clean images with the same seed; for the surrogate it "
        "is a white-box attack. overlap: intersection over union of the most salient 30 % of the pixels."
    ),
)
