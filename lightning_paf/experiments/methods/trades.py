"""TRADES: effect of its weight on clean and robust accuracy."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.methods.awp import robust_gap
from lightning_paf.experiments.options import GAUSSIAN_START, objective

EXPERIMENT = Experiment(
    title="TRADES (Zhang et al., ICML 2019)",
    variants=(
        *(Variant(f"beta{beta}", (*objective("TRADES", beta=beta), *GAUSSIAN_START)) for beta in (0, 1, 3, 6)),
        Variant("pgd"),
    ),
    claims=(
        Claim("Weight 1 is more robust than weight 0", "beta1", "beta0", "autoattack", source="paper"),
        Claim("Weight 3 is more robust than weight 1", "beta3", "beta1", "autoattack", source="paper"),
        Claim("Weight 6 is more robust than weight 1", "beta6", "beta1", "autoattack", source="paper"),
        Claim("Weight 1 keeps more clean accuracy than weight 6", "beta1", "beta6", "clean", source="paper"),
        Claim("Weight 6 is more robust than PGD training", "beta6", "pgd", "autoattack", source="paper"),
        Claim("Its robustness falls less from training to test images than that of PGD", "pgd", "beta6", "robust_gap"),
    ),
    metrics={"robust_gap": robust_gap},
    note="Digits are easy: clean accuracy is near its ceiling, where a trade can be too small to be seen.",
)
