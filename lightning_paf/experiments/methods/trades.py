"""TRADES: what its weight trades."""

from lightning_paf.experiments.experiment import Arm, Claim, Study
from lightning_paf.experiments.methods.awp import robust_gap

_GAUSSIAN = ("--model.attack.start", "gaussian", "--model.attack.clamp_start", "false")


def _beta(value: int) -> tuple[str, ...]:
    return ("--model.objective", "TRADES", "--model.objective.beta", str(value), *_GAUSSIAN)


STUDY = Study(
    title="TRADES (Zhang et al., ICML 2019)",
    arms=(
        Arm("beta0", _beta(0)),
        Arm("beta1", _beta(1)),
        Arm("beta3", _beta(3)),
        Arm("beta6", _beta(6)),
        Arm("pgd"),
    ),
    claims=(
        Claim("Weight 1 is more robust than weight 0", "beta1", "beta0", "autoattack", source="paper"),
        Claim("Weight 3 is more robust than weight 1", "beta3", "beta1", "autoattack", source="paper"),
        Claim("Weight 6 is more robust than weight 1", "beta6", "beta1", "autoattack", source="paper"),
        Claim("Weight 1 keeps more clean accuracy than weight 6", "beta1", "beta6", "clean", source="paper"),
        Claim("Weight 6 is more robust than PGD training", "beta6", "pgd", "autoattack", source="paper"),
        Claim("Its robustness falls less from training to test images than that of PGD", "pgd", "beta6", "robust_gap"),
    ),
    measures={"robust_gap": robust_gap},
    note="Digits are easy: clean accuracy is near its ceiling, where a trade can be too small to be seen.",
)
