"""MART against the training that it changes, and against TRADES."""

from lightning_paf.experiments.experiment import Arm, Claim, Study

_GAUSSIAN = ("--model.attack.start", "gaussian", "--model.attack.clamp_start", "false")

STUDY = Study(
    title="MART (Wang et al., ICLR 2020)",
    arms=(
        Arm("natural", ("--model.objective", "Natural")),
        Arm("pgd", _GAUSSIAN),
        Arm("trades", ("--model.objective", "TRADES", *_GAUSSIAN)),
        Arm("boosted", ("--model.objective", "MART", "--model.objective.weight", "0", *_GAUSSIAN)),
        Arm("mart", ("--model.objective", "MART", *_GAUSSIAN)),
    ),
    claims=(
        Claim("MART is more robust than clean training", "mart", "natural", "autoattack", source="paper"),
        Claim("MART is more robust than PGD training", "mart", "pgd", "pgd", source="paper"),
        Claim("The gain stands under AutoAttack", "mart", "pgd", "autoattack"),
        Claim("The weighted divergence adds robustness", "mart", "boosted", "autoattack", source="paper"),
        Claim("MART is not worse than TRADES by more than 2 points", "mart", "trades", "autoattack", by=-0.02),
    ),
    note="Published gains are one or two points, and smaller under AutoAttack than under PGD.",
)
