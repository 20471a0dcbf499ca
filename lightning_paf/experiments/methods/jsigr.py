"""J-SIGR and its two terms under an attack transferred from a wider network, and pixel saliency."""

from torch import Tensor

from lightning_paf.analysis.saliency import compare_saliency
from lightning_paf.attacks import EnsembleMIFGSM
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import correct
from lightning_paf.experiments.options import NATURAL, objective
from lightning_paf.loading import Run, load_run

EPS = 0.2
_SURROGATE = "surrogate"


def transfer(run: Run, x: Tensor, y: Tensor) -> Tensor:
    """Whether each image is robust to momentum FGSM (Dong et al., 2018) on the surrogate of the same seed."""
    folder = run.checkpoint.parent.parent.parent  # EXPERIMENT/VARIANT-SEED
    seed = folder.name.rpartition("-")[2]
    checkpoint = folder.parent / f"{_SURROGATE}-{seed}" / "run" / "checkpoints" / "last.ckpt"
    surrogate = load_run(checkpoint, device=str(run.device)).model
    x_adv = EnsembleMIFGSM([surrogate], eps=EPS)(run.model, x, y)
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
        Claim("J-SIGR is more robust to transferred attacks than PGD training", "jsigr", "pgd", "transfer", 0, "paper"),
        Claim("J-SIGR is more robust to transferred attacks than clean training", "jsigr", "natural", "transfer"),
        Claim("... than the Jacobian norm alone", "jsigr", "jacobian", "transfer"),
        Claim("The Jacobian norm alone helps", "jacobian", "natural", "transfer"),
        Claim(
            "Gradients agree more with perturbation saliency than after clean training",
            *("jsigr", "natural", "overlap"),
            source="paper",
        ),
        Claim("... than with the Jacobian norm alone", "jsigr", "jacobian", "overlap"),
        Claim("Under white-box attacks, PGD training is more robust", "pgd", "jsigr", "autoattack"),
        Claim("Under white-box attacks, J-SIGR is more robust than clean training", "jsigr", "natural", "autoattack"),
    ),
    metrics={"transfer": transfer, "overlap": overlap},
    shown=("clean", "transfer", "autoattack", "overlap"),
    eps=EPS,
    note=(
        "The authors published neither code nor constants: forms and weights are ours, and were not tuned. transfer: "
        "momentum FGSM, 10 steps, on a wider network trained on clean images with the same seed; in the row of the "
        "surrogate itself it is no transfer. overlap: intersection over union of the most salient 30 % of the "
        "pixels."
    ),
)
