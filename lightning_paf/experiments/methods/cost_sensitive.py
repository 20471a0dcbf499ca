"""Cost-sensitive training: protected class and Min-Max penalty under attack."""

from typing import Any

from torch import Tensor

from lightning_paf.analysis.min_max import convolutions, min_max_profile
from lightning_paf.attacks import FGSM, Attack, AutoAttack, DeepFool
from lightning_paf.experiments.experiment import Claim, Experiment, Metric, Variant
from lightning_paf.experiments.metrics import distance_of, margin_pgd, robust_to
from lightning_paf.experiments.options import NATURAL, objective
from lightning_paf.loading import Run

EPS, PROTECTED = 0.2, 8


def _robust_class(attack: Attack, protected: bool) -> Metric:
    """Metric over all test images of the protected class, or of the others.

    A sample would have too few of one class.
    """
    robust = robust_to(attack)

    def metric(run: Run, x: Tensor, y: Tensor) -> Any:
        samples = run.samples()
        x, y = samples.fetch(samples.ids)
        chosen = (y == PROTECTED) == protected
        return robust(run, x[chosen], y[chosen])

    return metric


def _profile(field: str) -> Metric:
    """Metric of the weights of the first convolution: `ratio` is |w|_1 / |w|_2."""

    def metric(run: Run, x: Tensor, y: Tensor) -> Any:
        return getattr(min_max_profile(next(iter(convolutions(run.model.net).values()))), field)

    return metric


_FGSM = ("--model.attack", "FGSM")
_CSE = (
    *(*objective("L1MinusL2", objective="CostSensitive"), "--model.init", "{natural}"),
    *("--model.objective.objective.protected", str(PROTECTED), "--model.objective.weight", "0.01"),
)

EXPERIMENT = Experiment(
    title="Cost-sensitive adversarial training, CSA and CSE (Shen et al., arXiv 2021)",
    variants=(
        Variant("natural", NATURAL),
        Variant("fgsm", _FGSM),
        Variant("csa", (*_FGSM, *objective("CSA", protected=PROTECTED, cost=10), "--model.init", "{fgsm}")),
        Variant("cse", _CSE),
        Variant("pgd"),
        Variant("cost-pgd", objective("CostSensitiveAT", protected=PROTECTED, cost=10)),
    ),
    claims=(
        Claim("Costs help the protected class under PGD training", "cost-pgd", "pgd", "protected_autoattack"),
        Claim("Costs lower the other classes by at most 5 points", "cost-pgd", "pgd", "others_pgd", by=-0.05),
        Claim("CSA helps the protected class", "csa", "fgsm", "protected_pgd", source="paper"),
        Claim("CSE is more robust to FGSM than clean training", "cse", "natural", "fgsm", source="paper"),
        Claim("DeepFool needs larger perturbations after CSE", "cse", "natural", "deepfool", source="paper"),
        Claim("CSE is more robust to PGD than clean training", "cse", "natural", "pgd", source="paper"),
        Claim("CSE is more robust to AutoAttack than clean training", "cse", "natural", "autoattack"),
        Claim("CSE is more robust to FGSM than to PGD", "cse", "cse", "fgsm", than="pgd"),
        Claim("CSE has the Min-Max property: |w|1/|w|2 falls", "natural", "cse", "ratio", source="paper"),
        Claim("CSE has the Min-Max property: kurtosis rises", "cse", "natural", "kurtosis", source="paper"),
        Claim("PGD training has the Min-Max property: |w|1/|w|2 falls", "natural", "pgd", "ratio", source="paper"),
    ),
    metrics={
        "fgsm": robust_to(FGSM(EPS)),
        "deepfool": distance_of(DeepFool()),
        "protected_pgd": _robust_class(margin_pgd(EPS), protected=True),
        "protected_autoattack": _robust_class(AutoAttack(EPS), protected=True),
        "others_pgd": _robust_class(margin_pgd(EPS), protected=False),
        "ratio": _profile("ratio"),
        "kurtosis": _profile("kurtosis"),
    },
    plain=("deepfool", "ratio", "kurtosis"),
    shown=("protected_autoattack", "protected_pgd", "others_pgd", "fgsm", "pgd", "autoattack"),
    eps=EPS,
    note=(
        "The protected class is 8, with about 35 test images, so only large gains are visible. `csa` and `cse` start "
        "from trained networks, so they are trained twice as long. ratio and kurtosis are those of the first "
        "convolution; deepfool is a distance."
    ),
)
