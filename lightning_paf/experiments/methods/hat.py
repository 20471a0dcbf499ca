"""HAT: clean accuracy that helper samples give back to TRADES."""

from lightning_paf.experiments.experiment import Arm, Claim, Study

_GAUSSIAN = ("--model.attack.start", "gaussian", "--model.attack.clamp_start", "false")

STUDY = Study(
    title="Helper-based adversarial training (Rade & Moosavi-Dezfooli, ICLR 2022)",
    arms=(
        Arm("standard", ("--model.objective", "Natural")),
        Arm("trades", ("--model.objective", "TRADES", "--model.objective.beta", "2.5", *_GAUSSIAN)),
        Arm("hat", ("--model.objective", "HAT", "--model.objective.standard", "{standard}", *_GAUSSIAN)),
    ),
    claims=(
        Claim("Helpers raise the clean accuracy of TRADES", "hat", "trades", "clean", source="paper"),
        Claim("They cost no more than 2 points of robustness", "hat", "trades", "autoattack", by=-0.02, source="paper"),
        Claim("HAT is more robust than clean training", "hat", "standard", "autoattack", source="paper"),
    ),
    note="Digits leave little clean accuracy to be given back.",
)
