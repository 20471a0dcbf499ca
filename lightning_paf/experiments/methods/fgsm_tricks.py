"""Li et al. (2022): pixel masks, a strided smooth network, a first-layer penalty; and GradAlign."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.methods.nfgsm import COLLAPSES, EVAL_EPS, FRESH, NOTE, alignment, blind_spot

_FGSM = ("--model.attack", "FGSM")
_STEM = ("--model.net.stem_stride", "2", "--model.activation", "SiLU")


def _mask(mask: str, ratio: float) -> tuple[str, ...]:
    return ("--model.objective", "PixelMask", "--model.objective.mask", mask, "--model.objective.ratio", str(ratio))


def _better(variant: str, what: str) -> Claim:
    return Claim(f"{what} makes FGSM training more robust", variant, "fgsm", "autoattack", source="paper")


EXPERIMENT = Experiment(
    title="Bag of tricks for FGSM training (Li et al., 2022), and GradAlign (Andriushchenko and Flammarion, 2020)",
    variants=(
        Variant("fgsm", _FGSM),
        Variant("mask", (*_FGSM, *_mask("per_sample", 0.2))),
        Variant("fixed-mask", (*_FGSM, *_mask("fixed", 0.2))),
        Variant("stem", (*_FGSM, *_STEM)),
        Variant("first-layer", (*_FGSM, "--model.objective", "FirstLayerPenalty")),
        Variant(
            "all-tricks",
            (
                *(*_FGSM, *_STEM, "--model.objective", "FirstLayerPenalty", "--model.objective.weight", "0.005"),
                *("--model.objective.objective", "PixelMask", "--model.objective.objective.ratio", "0.1"),
            ),
        ),
        Variant("grad-align", (*_FGSM, "--model.objective", "GradAlign")),
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
