"""Parametric activations that are smooth everywhere (Dai et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_paf.nn.activations.base import ParametricActivation, require_nonzero
from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.shape import ActivationShape, psoftplus_shape, pssilu_shape

ALPHA_FLOOR = 0.01
"""Lower bound of |alpha| in PSoftplus, which diverges at alpha = 0."""

GATED_INFLECTION = 2.39935728051546766783
"""Root of t tanh(t / 2) = 2, an inflection point of t sigmoid(t)."""


def _magnitude(alpha: Tensor) -> Tensor:
    return alpha.abs().clamp(min=ALPHA_FLOOR)


def _psoftplus(x: Tensor, alpha: Tensor) -> Tensor:
    """Stable PSoftplus, max(x, 0) + softplus(-|alpha x|) / |alpha|."""
    a = _magnitude(alpha)
    return x.clamp(min=0) + F.softplus(-a * x.abs()) / a


def _psoftplus_alpha_slope(x: Tensor, alpha: Tensor) -> Tensor:
    """Derivative of PSoftplus by alpha, -H / alpha^2 for alpha > 0.

    H is the entropy of sigmoid(u) with u = alpha x: H = softplus(-|u|) + |u| sigmoid(-|u|).
    """
    a, x = _magnitude(alpha), x.abs()
    entropy = F.softplus(-a * x) + a * (x * (-a * x).sigmoid())
    return -alpha.sign() * entropy / a.square()


class PSoftplus(ParametricActivation):
    """softplus(|alpha| x) / |alpha|; starts as Softplus.

    It tends to ReLU as alpha grows. The function bounds |alpha| below at 0.01, but passes the gradient by alpha on, so
    that alpha can grow again.

    Args:
        alpha: Initial value, not 0.
        learn_alpha: False fixes alpha.

    Raises:
        ValueError: alpha is 0 or not finite.
    """

    formula = Formula(
        value=_psoftplus,
        slope=lambda x, alpha: (_magnitude(alpha) * x).sigmoid(),
        parameter_slopes=(_psoftplus_alpha_slope,),
        inflections=lambda alpha: (),  # convex
    )

    def __init__(self, alpha: float = 1.0, learn_alpha: bool = True) -> None:
        require_nonzero(alpha, "has no limit")
        super().__init__(alpha, learn_alpha)

    def shape(self) -> ActivationShape:
        """Describe the curve at the current alpha."""
        return psoftplus_shape(float(_magnitude(self.alpha.detach()).mean()))


def gate(x: Tensor, alpha: Tensor) -> Tensor:
    """sigmoid(|alpha| x)."""
    return (alpha.abs() * x).sigmoid()


def gated_slope(x: Tensor, alpha: Tensor) -> Tensor:
    """Derivative by x of x * sigmoid(|alpha| x)."""
    s = gate(x, alpha)
    return torch.addcmul(s, x * (s - s * s), alpha.abs())  # |alpha| x alone could overflow where s - s^2 is 0


def gated_alpha_slope(x: Tensor, alpha: Tensor) -> Tensor:
    """Derivative by alpha of x * sigmoid(|alpha| x).

    Computed without x^2, which could overflow where the result is 0.
    """
    s = gate(x, alpha)
    return alpha.sign() * (x * (x * (s - s * s)))


def gated_inflections(alpha: Tensor) -> tuple[Tensor, ...]:
    """Inflection points of x * sigmoid(|alpha| x), which is convex between them."""
    point = GATED_INFLECTION / alpha.abs()
    return -point, point


class PSiLU(ParametricActivation):
    """x sigmoid(|alpha| x); starts as SiLU and tends to ReLU as alpha grows.

    Args:
        alpha: Initial value, not 0.
        learn_alpha: False fixes alpha.

    Raises:
        ValueError: alpha is 0 or not finite.
    """

    formula = Formula(
        value=lambda x, alpha: x * gate(x, alpha),
        slope=gated_slope,
        parameter_slopes=(gated_alpha_slope,),
        inflections=gated_inflections,
    )

    def __init__(self, alpha: float = 1.0, learn_alpha: bool = True) -> None:
        require_nonzero(alpha, "is the linear x / 2, and |alpha| has no gradient to leave it")
        super().__init__(alpha, learn_alpha)

    def shape(self) -> ActivationShape:
        """Describe the curve at the current alpha."""
        return pssilu_shape(float(self.alpha.detach().abs().mean()), beta=0.0)
