"""SCORE: a distance in place of a divergence."""

from lightning_paf.experiments.experiment import Arm, Claim, Study

STUDY = Study(
    title="SCORE (Pang et al., ICML 2022)",
    arms=(
        Arm("natural", ("--model.objective", "Natural")),
        Arm("trades", ("--model.objective", "TRADES", "--model.objective.beta", "5")),
        Arm("score-without", ("--model.objective", "SCORE", "--model.objective.beta", "0")),
        Arm("score", ("--model.objective", "SCORE")),
    ),
    claims=(
        Claim("SCORE is more robust than clean training", "score", "natural", "autoattack", source="paper"),
        Claim("The robust term is what does it", "score", "score-without", "autoattack"),
        Claim("SCORE keeps more clean accuracy than TRADES", "score", "trades", "clean", source="paper"),
        Claim("SCORE is not less robust than TRADES by more than 2 points", "score", "trades", "autoattack", by=-0.02),
    ),
)
