"""Dai et al. (2021): parametric activations against fixed ones, with and without a second source of images."""

from lightning_paf.experiments.experiment import Claim, Experiment, Variant

_FIXED = ("ReLU", "SiLU", "PReLU", "ELU")
_SMOOTH = ("PSSiLU", "PSiLU", "PSoftplus")
_SWEEP = (("PSiLU", (0.5, 4, 16)), ("PSoftplus", (1, 4, 16, 64)), ("PELU", (-0.5, 0.5)))
"""Activations with a constant alpha; PSiLU with alpha 1 is the variant of SiLU."""


def _activation(name: str) -> tuple[str, ...]:
    return ("--model.activation", name)


def _fixed_alpha(name: str, alpha: float) -> Variant:
    options = ("--model.activation.alpha", f"{alpha:g}", "--model.activation.learn_alpha", "false")
    return Variant(f"{name}-{alpha:g}", (*_activation(name), *options))


_REAL = ("--data.real_fraction", "1.0")
EXPERIMENT = Experiment(
    title="Parametric activation functions (Dai, Mahloujifar, Mittal, 2021)",
    variants=(
        *(Variant(name, _activation(name)) for name in ("ReLU", *_SMOOTH, *_FIXED[1:])),
        Variant("ReLU-real", (*_activation("ReLU"), *_REAL)),
        Variant("PSSiLU-real", (*_activation("PSSiLU"), *_REAL)),
        *(_fixed_alpha(name, alpha) for name, alphas in _SWEEP for alpha in alphas),
    ),
    claims=(Claim("PSSiLU is more robust than ReLU", "PSSiLU", "ReLU", "autoattack", source="paper"),),
    eps=None,
)
