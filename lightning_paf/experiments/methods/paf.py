"""Dai et al. (2021): parametric activations, with and without a second source."""

from functools import partial

from torch import Tensor

from lightning_paf.attacks import Square
from lightning_paf.experiments.activation_figures import accuracies, over_shape, parameters
from lightning_paf.experiments.claims import BestClaim, BoundClaim, GainClaim, RankClaim
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import attack_success, average_radius, empirical_lipschitz, training_radius
from lightning_paf.experiments.shape_metrics import alpha, beta, of_shape
from lightning_paf.loading import Run
from lightning_paf.nn.activations.shape import pssilu_shape

IMAGES = 200
"""Test images for `radius` and `lipschitz`."""
SQUARE_IMAGES, QUERIES = 100, 1000

_SMOOTH = ("PSSiLU", "PSiLU", "PSoftplus")
_KINKED = ("ReLU", "PReLU", "ELU")
_SWEEP = (("PSiLU", (0.5, 4, 16)), ("PSoftplus", (1, 4, 16, 64)), ("PELU", (-0.5, 0.5)))
"""Activations with a constant alpha; PSiLU with alpha 1 is the variant of SiLU."""
_FAMILIES = {
    "PSiLU": ("PSiLU-0.5", "SiLU", "PSiLU-4", "PSiLU-16"),
    "PSoftplus": ("PSoftplus-1", "PSoftplus-4", "PSoftplus-16", "PSoftplus-64"),
    "PELU": ("PELU--0.5", "ReLU", "PELU-0.5", "ELU"),
}
"""Constant shapes in the order of alpha; PELU is ReLU at 0 and ELU at 1."""
_FINITE = (*_FAMILIES["PSiLU"], *_FAMILIES["PSoftplus"])
_SHAPES = (*_FINITE, *_FAMILIES["PELU"])
_START = pssilu_shape(1, 0).mean_on_negative


def _activation(name: str) -> tuple[str, ...]:
    return ("--model.activation", name)


def _fixed_alpha(name: str, alpha: float) -> Variant:
    options = ("--model.activation.alpha", f"{alpha:g}", "--model.activation.learn_alpha", "false")
    return Variant(f"{name}-{alpha:g}", (*_activation(name), *options))


def _radius(run: Run, x: Tensor, y: Tensor) -> float:
    """Average radius over eps of the training, searched up to 8."""
    eps = training_radius(run)
    return average_radius(run.model, x[:IMAGES], y[:IMAGES], min(1.0, 8 * eps)) / eps


def _square(run: Run, x: Tensor, y: Tensor) -> float:
    success: float = attack_success(Square(training_radius(run), queries=QUERIES), SQUARE_IMAGES)(run, x, y)
    return success


def _lipschitz(run: Run, x: Tensor, y: Tensor) -> float:
    return empirical_lipschitz(run.model, x[:IMAGES], y[:IMAGES], training_radius(run))


_REAL = ("--data.real_fraction", "1.0", "--data.synthetic", "null")
EXPERIMENT = Experiment(
    title="Parametric activation functions (Dai, Mahloujifar, Mittal, 2021)",
    variants=(
        *(Variant(name, _activation(name)) for name in ("ReLU", *_SMOOTH, "SiLU", "PReLU", "ELU")),
        *(Variant(f"{name}-real", _activation(name), last=_REAL) for name in ("ReLU", "PSSiLU")),
        *(_fixed_alpha(name, alpha) for name, alphas in _SWEEP for alpha in alphas),
    ),
    claims=(
        Claim("a) PSSiLU is more robust than ReLU", "PSSiLU", "ReLU", "autoattack", source="paper"),
        Claim("a) PSSiLU is more robust than ReLU to PGD", "PSSiLU", "ReLU", "pgd", source="paper"),
        *(
            Claim(f"b) {name} is more robust than ReLU", name, "ReLU", "autoattack", source="paper")
            for name in _SMOOTH
            if name != "PSSiLU"
        ),
        *(
            BestClaim(f"b) {name} is more robust than ReLU, PReLU and ELU", name, _KINKED, "autoattack", "paper")
            for name in _SMOOTH
        ),
        *(
            RankClaim("c) Robustness rises with finite curvature", _FINITE, metric, "curvature", "paper")
            for metric in ("autoattack", "pgd")
        ),
        *(
            RankClaim("c) Robustness rises with outputs on negative inputs", _SHAPES, metric, "negative_mean", "paper")
            for metric in ("autoattack", "pgd")
        ),
        Claim("c) PSoftplus: alpha 16 is more robust than 1", "PSoftplus-16", "PSoftplus-1", "autoattack"),
        Claim("c) PSiLU: alpha 4 is more robust than 0.5", "PSiLU-4", "PSiLU-0.5", "autoattack"),
        Claim("c) PSoftplus with alpha 16 is more robust than ReLU", "PSoftplus-16", "ReLU", "autoattack"),
        Claim("c) PELU: alpha -0.5 is more robust than 0.5", "PELU--0.5", "PELU-0.5", "autoattack"),
        *(BoundClaim(f"d) alpha of {name} grows from 1", name, "alpha", 1.0, "paper") for name in _SMOOTH),
        BoundClaim("d) Outputs of PSSiLU on negative inputs grow", "PSSiLU", "negative_mean", _START, "paper"),
        BoundClaim("d) beta of PSSiLU grows from 1e-8 to above 0.01", "PSSiLU", "beta", 0.01),
        GainClaim(
            "e) PSSiLU gains more over ReLU with the second source than without",
            *(("PSSiLU", "ReLU"), ("PSSiLU-real", "ReLU-real"), "autoattack"),
            source="paper",
        ),
        Claim("e) The second source makes ReLU more robust", "ReLU", "ReLU-real", "autoattack"),
        Claim("e) The second source makes PSSiLU more robust", "PSSiLU", "PSSiLU-real", "autoattack"),
    ),
    metrics={
        "alpha": alpha,
        "beta": beta,
        "curvature": of_shape("max_curvature"),
        "negative_mean": of_shape("mean_on_negative"),
        "radius": _radius,
        "square": _square,
        "lipschitz": _lipschitz,
    },
    plain=("alpha", "beta", "curvature", "negative_mean", "radius", "lipschitz"),
    shown=("clean", "pgd", "autoattack"),
    eps=None,
    note=(
        "All but -real train on a second source, too, and see as many images. A name with a number has a constant "
        "alpha. Claims b: against the best of the three. curvature and negative_mean: max |f''| and E[f(X) | X < 0] of "
        "a standard normal X, in closed form; - is infinite or no such parameter. Rank correlations: Spearman, over "
        "8 shapes with finite curvature, and these, ReLU, ELU and two PELU; so few points give wide intervals. radius: "
        f"mean linf radius at which PGD-10 fools a network, over eps, first {IMAGES} images. lipschitz: mean l1 change "
        f"of their logits under PGD-10, over eps. square: success of Square with {QUERIES:,} queries among the "
        f"correctly classified of the first {SQUARE_IMAGES}."
    ),
    config="experiments/digits_pool",
    pool=("synthesize", "--dataset", "digits", "--val_size", "200", "--count", "10000", "--out", "{pool}", "--force"),
    histories=("activation/alpha", "activation/beta"),
    figures={
        "": accuracies,
        "parameters": partial(parameters, variants=_SMOOTH),
        "shape": partial(over_shape, families=_FAMILIES),
    },
)
