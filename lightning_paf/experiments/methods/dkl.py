"""IKL against the divergence that it takes apart."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant

_GAUSSIAN = ("--model.attack.start", "gaussian", "--model.attack.clamp_start", "false")
_GROWING = ("--trainer.callbacks", "RadiusSchedule")

EXPERIMENT = Experiment(
    title="Improved Kullback-Leibler loss (Cui et al., 2023)",
    options=_GAUSSIAN,
    variants=(
        Variant("trades", ("--model.objective", "TRADES")),
        Variant("soft", ("--model.objective", "IKL", "--model.objective.beta", "0")),
        Variant("ikl", ("--model.objective", "IKL")),
        Variant("ikl-growing", ("--model.objective", "IKL", *_GROWING)),
    ),
    claims=(
        Claim("IKL is more robust than TRADES", "ikl", "trades", "autoattack", source="paper"),
        Claim("The squares add robustness", "ikl", "soft", "autoattack", source="paper"),
        Claim("A growing radius keeps more clean accuracy", "ikl-growing", "ikl", "clean"),
        Claim("It costs no more than 5 points of robustness", "ikl-growing", "ikl", "autoattack", by=-0.05),
    ),
    note="The published gain over TRADES with weight perturbation is one point.",
)
