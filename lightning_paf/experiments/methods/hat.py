"""HAT: clean accuracy that helper samples give back to TRADES."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant

_GAUSSIAN = ("--model.attack.start", "gaussian", "--model.attack.clamp_start", "false")

EXPERIMENT = Experiment(
    title="Helper-based adversarial training (Rade & Moosavi-Dezfooli, ICLR 2022)",
    variants=(
        Variant("standard", ("--model.objective", "Natural")),
        Variant("trades", ("--model.objective", "TRADES", "--model.objective.beta", "2.5", *_GAUSSIAN)),
        Variant("hat", ("--model.objective", "HAT", "--model.objective.standard", "{standard}", *_GAUSSIAN)),
    ),
    claims=(
        Claim("Helpers raise the clean accuracy of TRADES", "hat", "trades", "clean", source="paper"),
        Claim("They cost no more than 2 points of robustness", "hat", "trades", "autoattack", by=-0.02, source="paper"),
        Claim("HAT is more robust than clean training", "hat", "standard", "autoattack", source="paper"),
    ),
    note="Digits leave little clean accuracy to be given back.",
)
