"""Tricks for FGSM training (Li et al., 2022), and GradAlign."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.methods.nfgsm import COLLAPSES, EVAL_EPS, FRESH, NOTE, alignment, blind_spot
from lightning_paf.experiments.options import objective

_STEM = ("--model.net.stem_stride", "2", "--model.activation", "SiLU")
_COMBINED = (*objective("FirstLayerPenalty", weight=0.005, objective="PixelMask"), "--model.objective.objective.ratio")


def _fgsm(name: str, *options: str) -> Variant:
    return Variant(name, ("--model.attack", "FGSM", *options))


def _better(variant: str, trick: str) -> Claim:
    return Claim(f"{trick} makes FGSM training more robust", variant, "fgsm", "autoattack", source="paper")


EXPERIMENT = Experiment(
    title="Bag of tricks for FGSM training (Li et al., 2022), and GradAlign (Andriushchenko and Flammarion, 2020)",
    variants=(
        _fgsm("fgsm"),
        _fgsm("mask", *objective("PixelMask", mask="per_sample", ratio=0.2)),
        _fgsm("fixed-mask", *objective("PixelMask", mask="fixed", ratio=0.2)),
        _fgsm("stem", *_STEM),
        _fgsm("first-layer", *objective("FirstLayerPenalty")),
        _fgsm("all-tricks", *_STEM, *_COMBINED, "0.1"),
        _fgsm("grad-align", *objective("GradAlign", differentiate_both="true")),
    ),
    claims=(
        _better("mask", "Hiding pixels"),
        _better("fixed-mask", "Hiding always the same pixels"),
        _better("stem", "A strided stem with a smooth activation"),
        _better("first-layer", "A penalty on the first layer"),
        _better("all-tricks", "The combination"),
        _better("grad-align", "GradAlign"),
        Claim("GradAlign aligns gradients", "grad-align", "fgsm", "alignment", source="paper"),
        Claim("FGSM training has a larger blind spot than with GradAlign", "fgsm", "grad-align", "blind_spot"),
    ),
    options=COLLAPSES,
    metrics={"blind_spot": blind_spot, "alignment": alignment},
    plain=("alignment",),
    eps=EVAL_EPS,
    note=f"{NOTE} The weight of GradAlign was not adapted to eps.",
    first_seed=FRESH,
)
