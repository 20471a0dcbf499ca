"""IKL against TRADES, whose divergence it decouples."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.options import GAUSSIAN_START, objective

EXPERIMENT = Experiment(
    title="Improved Kullback-Leibler loss (Cui et al., 2023)",
    options=GAUSSIAN_START,
    variants=(
        Variant("trades", objective("TRADES")),
        Variant("soft", objective("IKL", beta=0)),
        Variant("ikl", objective("IKL")),
        Variant("ikl-growing", (*objective("IKL"), "--trainer.callbacks", "RadiusSchedule")),
    ),
    claims=(
        Claim("IKL is more robust than TRADES", "ikl", "trades", "autoattack", source="paper"),
        Claim("The squares add robustness", "ikl", "soft", "autoattack", source="paper"),
        Claim("A growing radius keeps more clean accuracy", "ikl-growing", "ikl", "clean"),
        Claim("It costs no more than 5 points of robustness", "ikl-growing", "ikl", "autoattack", by=-0.05),
    ),
    note="The published gain over TRADES with weight perturbation is one point.",
)
