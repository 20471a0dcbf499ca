"""Interpolated adversarial training, with input and manifold mixup."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.options import NATURAL, objective

EXPERIMENT = Experiment(
    title="Interpolated adversarial training (Lamb et al., AISec 2019)",
    variants=(
        Variant("natural", NATURAL),
        Variant("pgd"),
        Variant("half", objective("IAT", alpha=0)),
        Variant("iat", objective("IAT")),
        Variant("iat-manifold", objective("IAT", alpha=2, layers="[0,1,2]")),
    ),
    claims=(
        Claim("Interpolation keeps more clean accuracy than PGD training", "iat", "pgd", "clean", source="paper"),
        Claim("So does manifold mixup", "iat-manifold", "pgd", "clean", source="paper"),
        Claim("Robustness is kept (within 5 points of PGD training)", "iat", "pgd", "autoattack", -0.05, "paper"),
        Claim("Interpolation is 10 points more robust than clean training", "iat", "natural", "autoattack", 0.1),
        Claim("Interpolation keeps more clean accuracy than half and half", "iat", "half", "clean"),
        Claim("Half and half keeps more clean accuracy than PGD training", "half", "pgd", "clean"),
    ),
    note=(
        "The paper evaluates with PGD of few steps; under AutoAttack, training on mixtures may lose more. half: half "
        "clean, half adversarial, without mixing. On digits clean accuracy is near its ceiling, and mixing may "
        "underfit in 40 epochs."
    ),
)
