"""Madry et al. (2018): PGD training against clean and single-step training."""

from torch import Tensor

from lightning_paf.analysis.concentration import concentration
from lightning_paf.attacks import PGD
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.options import NATURAL
from lightning_paf.loading import Run


def _spread(run: Run, x: Tensor, y: Tensor) -> float:
    """Median spread of the final losses of 30 starts, on the first 50 images."""
    attack = PGD(0.2, step_size=0.025, steps=20)
    return float(concentration(run.model, x[:50], y[:50], attack, starts=30).spread.median())


EXPERIMENT = Experiment(
    title="PGD adversarial training (Madry et al., ICLR 2018)",
    variants=(
        Variant("natural", NATURAL),
        Variant("fgsm", ("--model.attack", "FGSM")),
        Variant("pgd-width4", ("--model.net.width", "4")),
        Variant("pgd-width8", ("--model.net.width", "8")),
        Variant("pgd-width16"),
        Variant("pgd-width32", ("--model.net.width", "32")),
    ),
    claims=(
        Claim("PGD training is more robust than clean training", "pgd-width16", "natural", "autoattack", 0, "paper"),
        Claim("PGD training is more robust than FGSM training", "pgd-width16", "fgsm", "autoattack", source="paper"),
        Claim("Clean training keeps more clean accuracy", "natural", "pgd-width16", "clean", source="paper"),
        Claim("Robustness needs capacity: width 32 above 4", "pgd-width32", "pgd-width4", "autoattack", source="paper"),
        Claim("Robustness needs capacity: width 16 above 8", "pgd-width16", "pgd-width8", "autoattack", source="paper"),
        Claim(
            "The losses of random starts agree more after PGD training",
            *("natural", "pgd-width16", "spread"),
            source="paper",
        ),
    ),
    metrics={"spread": _spread},
    plain=("spread",),
    note=(
        "spread: standard deviation over mean of the final losses of 30 random starts, median over images. A spread "
        "of clean accuracy of tens of points means that one training stayed at a constant prediction, as the paper "
        "reports for small networks. The claims about capacity rest on such trainings."
    ),
)
