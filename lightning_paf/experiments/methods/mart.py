"""MART against PGD training and TRADES."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.options import GAUSSIAN_START, NATURAL, objective

EXPERIMENT = Experiment(
    title="MART (Wang et al., ICLR 2020)",
    variants=(
        Variant("natural", NATURAL),
        Variant("pgd", GAUSSIAN_START),
        Variant("trades", (*objective("TRADES"), *GAUSSIAN_START)),
        Variant("boosted", (*objective("MART", weight=0), *GAUSSIAN_START)),
        Variant("mart", (*objective("MART"), *GAUSSIAN_START)),
    ),
    claims=(
        Claim("MART is more robust than clean training", "mart", "natural", "autoattack", source="paper"),
        Claim("MART is more robust than PGD training", "mart", "pgd", "pgd", source="paper"),
        Claim("The gain holds under AutoAttack", "mart", "pgd", "autoattack"),
        Claim("The weighted divergence adds robustness", "mart", "boosted", "autoattack", source="paper"),
        Claim("MART is not worse than TRADES by more than 2 points", "mart", "trades", "autoattack", by=-0.02),
    ),
    note="Published gains are one or two points, and smaller under AutoAttack than under PGD.",
)
