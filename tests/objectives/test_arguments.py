"""Invalid arguments of all objectives."""

import math
from pathlib import Path

import pytest

from lightning_paf.objectives import (
    AWP,
    CROWNIBP,
    DIALKL,
    ELBO,
    ERCLA,
    HAT,
    IAT,
    IBP,
    IKL,
    MART,
    SABR,
    SCORE,
    TRADES,
    AdversarialCE,
    BinaryTRADES,
    CostSensitive,
    FirstLayerPenalty,
    GradAlign,
    JacobianNorm,
    L1MinusL2,
    Natural,
    NoisyCE,
    PixelMask,
    SelectiveInputGradient,
)

REQUIRED = {AWP: {"objective": Natural()}, HAT: {"standard": Path("none.ckpt")}}
INVALID = {
    AWP: {"gamma": [-1], "warmup": [1]},
    AdversarialCE: {"label_smoothing": [1]},
    CROWNIBP: {"crown_until": [0, 1.5]},
    BinaryTRADES: {"lam": [0]},
    CostSensitive: {"cost": [-1, math.inf], "weight": [-0.5]},
    ELBO: {
        "estimator": ["iwae"],
        "samples": [0, 1],
        "kl_weight": [-1],
        "horizon": [0, math.inf],
    },
    DIALKL: {"beta": [-1], "domain_weight": [-1], "hidden": [[0]]},
    ERCLA: {"weight": [-1, math.nan], "std": [0], "clip": [-0.01], "rate": [0], "hidden": [[0]], "delay": [-1]},
    FirstLayerPenalty: {"weight": [-1], "kind": ["l3"]},
    GradAlign: {"weight": [-1]},
    HAT: {"beta": [-1], "gamma": [-1], "scale": [0.5], "label_smoothing": [1]},
    IAT: {"alpha": [-1, 1e-3], "layers": [[], [-1]]},
    IBP: {"clean_weight": [-0.1, 1.1]},
    IKL: {"alpha": [-1], "beta": [-1], "temperature": [-1]},
    JacobianNorm: {"weight": [-1], "projections": [0]},
    L1MinusL2: {"weight": [-1], "layers": [[], 0, -1, "conv", True]},
    MART: {"weight": [-1, math.inf]},
    NoisyCE: {"std": [-0.1, math.inf, math.nan]},
    PixelMask: {"ratio": [-0.1, 1, 1.5, math.nan], "mask": ["other"], "train_input": ["other"]},
    SABR: {"fraction": [0, 2]},
    SCORE: {"beta": [-1], "clip": [-1]},
    SelectiveInputGradient: {"mode": ["both"], "quantile": [1.5], "grid": [0], "examples": [0], "window": [0]},
    TRADES: {"beta": [-1]},
}
CASES = [(cls, name, value) for cls, options in INVALID.items() for name, values in options.items() for value in values]


@pytest.mark.parametrize(("cls", "name", "value"), CASES, ids=[f"{cls.__name__}-{n}-{v}" for cls, n, v in CASES])
def test_invalid_arguments_are_refused(cls, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*--model\.objective\.{name} ") as error:
        cls(**REQUIRED.get(cls, {}), **{name: value})
    assert f", got {value!r}. Pass" in str(error.value)
