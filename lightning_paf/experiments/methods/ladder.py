"""LADDER fine-tuning against PGD training and random directions."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import margin_pgd, robust_to
from lightning_paf.experiments.options import NATURAL

SMALL_EPS = 0.05
"""Radius at which clean training retains some accuracy."""


def _tuned(name: str, *directions: str) -> Variant:
    """Fine-tune at a tenth of the learning rate, on as many original as moved images."""
    made = ("analyze", "ladder", "--ckpt", "{natural}", "--out", "{folder}/moved.npz", "--force", "--width", "16")
    options = (
        *(*NATURAL, "--model.init", "{natural}", "--model.optimizer.lr", "0.0003"),
        *("--data.synthetic", "{folder}/moved.npz", "--data.real_fraction", "0.5"),
    )
    sizes = ("--per-class", "0", "--svm-images", "60", "--epochs", "60")
    return Variant(name, options, before=((*made, *sizes, *directions),))


EXPERIMENT = Experiment(
    title="LADDER (Zhou, Tsang, Yin, Machine Learning 2022)",
    variants=(
        Variant("natural", NATURAL),
        _tuned("ladder"),
        _tuned("no-attention", "--no-attention"),
        _tuned("random", "--random-directions"),
        Variant("pgd"),
    ),
    claims=(
        Claim("LADDER is more robust than clean training", "ladder", "natural", "autoattack", source="paper"),
        Claim(
            "LADDER is more robust than clean training to PGD at eps 0.05",
            "ladder",
            "natural",
            "pgd_small",
            source="paper",
        ),
        Claim("LADDER keeps more clean accuracy than PGD training", "ladder", "pgd", "clean", source="paper"),
        Claim("LADDER comes within 10 points of PGD training's robustness", "ladder", "pgd", "autoattack", by=-0.1),
        Claim("Boundaries are more robust than random directions", "ladder", "random", "pgd_small"),
        Claim("Attention is more robust than a linear boundary", "ladder", "no-attention", "pgd_small"),
    ),
    metrics={"pgd_small": robust_to(margin_pgd(SMALL_EPS))},
    note=(
        "Lengths are chosen so that 30 % of the moved images change their class, also along random directions. The "
        "paper claims a better trade between clean and robust accuracy, and evaluates with attacks weaker than "
        "AutoAttack."
    ),
)
