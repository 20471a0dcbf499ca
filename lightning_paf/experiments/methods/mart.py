"""MART against the training that it changes, and against TRADES."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant

_GAUSSIAN = ("--model.attack.start", "gaussian", "--model.attack.clamp_start", "false")

EXPERIMENT = Experiment(
    title="MART (Wang et al., ICLR 2020)",
    variants=(
        Variant("natural", ("--model.objective", "Natural")),
        Variant("pgd", _GAUSSIAN),
        Variant("trades", ("--model.objective", "TRADES", *_GAUSSIAN)),
        Variant("boosted", ("--model.objective", "MART", "--model.objective.weight", "0", *_GAUSSIAN)),
        Variant("mart", ("--model.objective", "MART", *_GAUSSIAN)),
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
