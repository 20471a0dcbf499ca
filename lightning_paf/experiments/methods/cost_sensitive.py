"""Cost-sensitive training: accuracy of the protected class, and the Min-Max penalty under strong attacks."""

from typing import TYPE_CHECKING, Any

from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import margin_pgd, withstands

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.analysis.min_max import MinMaxProfile
    from lightning_paf.loading import Run

EPS, PROTECTED = 0.2, 8


def _test_images(run: "Run", own: bool) -> "tuple[Tensor, Tensor]":
    """All test images of the protected class, or of the others; the evaluated sample has few of one class."""
    samples = run.samples()
    x, y = samples.fetch(samples.ids)
    chosen = (y == PROTECTED) == own
    return x[chosen], y[chosen]


def fgsm(run: "Run", x: "Tensor", y: "Tensor") -> Any:
    """Whether each image is robust to FGSM."""
    from lightning_paf.attacks import FGSM

    return withstands(run, x, y, FGSM(EPS))


def deepfool(run: "Run", x: "Tensor", y: "Tensor") -> "Tensor":
    """l2 distance of the DeepFool example of each image."""
    from lightning_paf.attacks import DeepFool

    return DeepFool().nearest(run.model, x, y)[1].nan_to_num(posinf=8.0)  # the diagonal of all images


def protected_pgd(run: "Run", x: "Tensor", y: "Tensor") -> Any:
    """Whether each image of the protected class is robust to PGD (margin loss, three starts)."""
    return withstands(run, *_test_images(run, own=True), margin_pgd(EPS))


def protected_autoattack(run: "Run", x: "Tensor", y: "Tensor") -> Any:
    """Whether each image of the protected class is robust to AutoAttack."""
    from lightning_paf.attacks import AutoAttack

    return withstands(run, *_test_images(run, own=True), AutoAttack(EPS))


def others_pgd(run: "Run", x: "Tensor", y: "Tensor") -> Any:
    """Whether each image of another class is robust to PGD."""
    return withstands(run, *_test_images(run, own=False), margin_pgd(EPS))


def _first_convolution(run: "Run") -> "MinMaxProfile":
    from lightning_paf.analysis.min_max import convolutions, min_max_profile

    return min_max_profile(next(iter(convolutions(run.model.net).values())))


def ratio(run: "Run", x: "Tensor", y: "Tensor") -> float:
    """|w|_1 / |w|_2 of the first convolution."""
    return _first_convolution(run).ratio


def kurtosis(run: "Run", x: "Tensor", y: "Tensor") -> float:
    """Kurtosis of the weights of the first convolution."""
    return _first_convolution(run).kurtosis


_PROTECT = ("--model.objective.protected", str(PROTECTED), "--model.objective.cost", "10")
_CSE = (
    *("--model.objective", "L1MinusL2", "--model.objective.objective", "CostSensitive", "--model.init", "{natural}"),
    *("--model.objective.objective.protected", str(PROTECTED), "--model.objective.weight", "0.01"),
)

EXPERIMENT = Experiment(
    title="Cost-sensitive adversarial training, CSA and CSE (Shen et al., arXiv 2021)",
    variants=(
        Variant("natural", ("--model.objective", "Natural")),
        Variant("fgsm", ("--model.attack", "FGSM")),
        Variant("csa", ("--model.attack", "FGSM", "--model.objective", "CSA", *_PROTECT, "--model.init", "{fgsm}")),
        Variant("cse", _CSE),
        Variant("pgd"),
        Variant("cost-pgd", ("--model.objective", "CostSensitiveAT", *_PROTECT)),
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
        "fgsm": fgsm,
        "deepfool": deepfool,
        "protected_pgd": protected_pgd,
        "protected_autoattack": protected_autoattack,
        "others_pgd": others_pgd,
        "ratio": ratio,
        "kurtosis": kurtosis,
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
