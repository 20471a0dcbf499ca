"""Random self-ensemble against clean and adversarial training, with EOT."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import robust_in_expectation
from lightning_paf.experiments.options import NATURAL, objective

EPS = 0.2
PASSES = 4
DRAWS = 10
"""Calls averaged by the attack and by the final prediction."""

_ENSEMBLE = (
    *("--model.net", "RandomSelfEnsemble", "--model.net.net", "SmallConvNet"),
    *("--model.net.first_std", "0.4", "--model.net.inner_std", "0.2", "--model.net.passes", str(PASSES)),
)


EXPERIMENT = Experiment(
    title="Random self-ensemble (Liu et al., ECCV 2018)",
    variants=(
        Variant("natural", NATURAL),
        Variant("rse", (*NATURAL, *_ENSEMBLE)),
        Variant("pgd"),
        Variant("trades", objective("TRADES")),
    ),
    claims=(
        Claim("RSE is more robust to PGD on expectations than clean training", "rse", "natural", "eot"),
        Claim("RSE is less robust to PGD on expectations than PGD training", "pgd", "rse", "eot"),
        Claim("RSE is less robust to PGD on expectations than TRADES", "trades", "rse", "eot"),
        Claim("RSE is more robust to AutoAttack than clean training", "rse", "natural", "autoattack"),
        Claim("RSE is less robust to AutoAttack than PGD training", "pgd", "rse", "autoattack"),
        Claim("RSE is less robust to AutoAttack than TRADES", "trades", "rse", "autoattack"),
        Claim("RSE reduces clean accuracy", "natural", "rse", "clean"),
    ),
    metrics={"eot": robust_in_expectation(EPS, DRAWS)},
    shown=("clean", "eot", "pgd", "autoattack"),
    options=("--model.normalize", "false"),
    eps=EPS,
    note=(
        f"eot: PGD-20 on the margin of probabilities averaged over {DRAWS} calls ({PASSES * DRAWS} passes of the "
        f"ensemble), and evaluated with {PASSES * DRAWS} new passes. pgd and autoattack are the standard attacks: on a "
        "random network they count every image that the current draw misclassifies. The paper evaluates with C&W, "
        "where the ensemble is better than earlier defences. Noise is 0.4 before the first convolution and 0.2 before "
        f"the others, half of the values of the review by Li et al. for MNIST, with {PASSES} passes instead of 10 to "
        "save time. These values were not tuned."
    ),
)
