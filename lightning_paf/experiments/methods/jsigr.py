"""J-SIGR and its two halves, under an attack that is transferred from a wider network, and the saliency of pixels."""

from typing import TYPE_CHECKING, Any

from lightning_paf.experiments.experiment import Arm, Claim, Study

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.loading import Run

EPS = 0.2
_SURROGATE = "surrogate"
_NATURAL = ("--model.objective", "Natural")
_JACOBIAN = ("--model.objective", "JacobianNorm")
_SELECTIVE = ("--model.objective", "SelectiveInputGradient")


def transfer(run: "Run", x: "Tensor", y: "Tensor") -> Any:
    """Whether each image withstands momentum FGSM (Dong et al., 2018) on the surrogate of the same seed."""
    import torch

    from lightning_paf.attacks import EnsembleMIFGSM
    from lightning_paf.functional.predictions import misclassified
    from lightning_paf.loading import load_run

    place = run.checkpoint.parent.parent.parent  # STUDY/ARM-SEED
    seed = place.name.rpartition("-")[2]
    checkpoint = place.parent / f"{_SURROGATE}-{seed}" / "run" / "checkpoints" / "last.ckpt"
    surrogate = load_run(checkpoint, device=str(run.device)).model
    x_adv = EnsembleMIFGSM([surrogate], eps=EPS)(run.model, x, y)
    with torch.no_grad():
        return (~misclassified(run.model(x_adv), y)).cpu().numpy()


def overlap(run: "Run", x: "Tensor", y: "Tensor") -> Any:
    """Overlap of gradient saliency and perturbation saliency of each image."""
    from lightning_paf.analysis.saliency import compare_saliency

    return compare_saliency(run.model, x).overlap.cpu().numpy()


STUDY = Study(
    title="J-SIGR (Liu et al., Pattern Recognition 2024), a reconstruction",
    arms=(
        Arm(_SURROGATE, (*_NATURAL, "--model.net.width", "32")),
        Arm("natural", _NATURAL, after=(_SURROGATE,)),
        Arm("jacobian", _JACOBIAN, after=(_SURROGATE,)),
        Arm("selective", _SELECTIVE, after=(_SURROGATE,)),
        Arm("jsigr", (*_SELECTIVE, "--model.objective.objective", "JacobianNorm"), after=(_SURROGATE,)),
        Arm("pgd", after=(_SURROGATE,)),
    ),
    claims=(
        Claim("J-SIGR withstands transferred attacks better than PGD training", "jsigr", "pgd", "transfer", 0, "paper"),
        Claim("J-SIGR withstands transferred attacks better than clean training", "jsigr", "natural", "transfer"),
        Claim("... than the Jacobian norm alone", "jsigr", "jacobian", "transfer"),
        Claim("The Jacobian norm alone helps", "jacobian", "natural", "transfer"),
        Claim(
            "Gradients show more of what matters than after clean training", "jsigr", "natural", "overlap", 0, "paper"
        ),
        Claim("... than with the Jacobian norm alone", "jsigr", "jacobian", "overlap"),
        Claim("Under attack itself, PGD training is more robust", "pgd", "jsigr", "autoattack"),
        Claim("Under attack itself, J-SIGR is more robust than clean training", "jsigr", "natural", "autoattack"),
    ),
    measures={"transfer": transfer, "overlap": overlap},
    shown=("clean", "transfer", "autoattack", "overlap"),
    eps=EPS,
    note=(
        "The authors published neither code nor constants: forms and weights are ours, and were not tuned. transfer: "
        "momentum FGSM, 10 steps, on a wider network trained on clean images with the same seed; in the row of the "
        "surrogate itself it is no transfer. overlap: intersection over union of the most salient 30 % of the pixels."
    ),
)
