"""SCORE: a squared distance instead of a divergence."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.options import NATURAL, objective

EXPERIMENT = Experiment(
    title="SCORE (Pang et al., ICML 2022)",
    variants=(
        Variant("natural", NATURAL),
        Variant("trades", objective("TRADES", beta=5)),
        Variant("score-without", objective("SCORE", beta=0)),
        Variant("score", objective("SCORE")),
    ),
    claims=(
        Claim("SCORE is more robust than clean training", "score", "natural", "autoattack", source="paper"),
        Claim("The robust term causes the robustness", "score", "score-without", "autoattack"),
        Claim("SCORE keeps more clean accuracy than TRADES", "score", "trades", "clean", source="paper"),
        Claim("SCORE is not less robust than TRADES by more than 2 points", "score", "trades", "autoattack", by=-0.02),
    ),
)
