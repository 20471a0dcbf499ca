"""Interpolated adversarial training, with input and manifold mixup."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant

_IAT = ("--model.objective", "IAT")

EXPERIMENT = Experiment(
    title="Interpolated adversarial training (Lamb et al., AISec 2019)",
    variants=(
        Variant("natural", ("--model.objective", "Natural")),
        Variant("pgd"),
        Variant("half", (*_IAT, "--model.objective.alpha", "0")),
        Variant("iat", _IAT),
        Variant("iat-manifold", (*_IAT, "--model.objective.alpha", "2", "--model.objective.layers", "[0,1,2]")),
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
