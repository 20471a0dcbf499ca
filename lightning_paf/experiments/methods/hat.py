"""HAT against TRADES: clean accuracy gained by helper samples."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.options import GAUSSIAN_START, NATURAL, objective

EXPERIMENT = Experiment(
    title="Helper-based adversarial training (Rade & Moosavi-Dezfooli, ICLR 2022)",
    variants=(
        Variant("standard", NATURAL),
        Variant("trades", (*objective("TRADES", beta=2.5), *GAUSSIAN_START)),
        Variant("hat", (*objective("HAT", standard="{standard}", scale=3.5), *GAUSSIAN_START)),
    ),
    claims=(
        Claim("Helpers raise the clean accuracy of TRADES", "hat", "trades", "clean", source="paper"),
        Claim("They cost no more than 2 points of robustness", "hat", "trades", "autoattack", by=-0.02, source="paper"),
        Claim("HAT is more robust than clean training", "hat", "standard", "autoattack", source="paper"),
    ),
    note="Digits leave little clean accuracy to be given back.",
)
