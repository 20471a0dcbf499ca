"""Closed-form mean, Lipschitz constant and curvature of activations."""

import math
from collections.abc import Callable
from dataclasses import dataclass

NEGATIVE_MEAN = -math.sqrt(2 / math.pi)
"""E[X | X < 0] of a standard normal X."""

SILU_MAX_SLOPE = 1.0998393201288669
"""Largest slope of x * sigmoid(x); the smallest slope is 1 minus this."""


@dataclass(frozen=True)
class ActivationShape:
    """Shape of an activation function f from R to R.

    Dai et al. (2021) relate robustness to the output on negative inputs and to a high but finite curvature.

    Attributes:
        mean_on_negative: E[f(X) | X < 0] for a standard normal X, as after batch normalisation.
        max_slope: Supremum of |f'|, the Lipschitz constant of f.
        max_curvature: Supremum of |f''|; inf where the slope jumps.
    """

    mean_on_negative: float
    max_slope: float
    max_curvature: float


def piecewise_linear_shape(negative: float, positive: float) -> ActivationShape:
    """Shape of negative * x for x < 0, positive * x for x > 0."""
    return ActivationShape(
        mean_on_negative=negative * NEGATIVE_MEAN if negative else 0.0,
        max_slope=max(abs(negative), abs(positive)),
        max_curvature=0.0 if negative == positive else math.inf,
    )


def psoftplus_shape(alpha: float) -> ActivationShape:
    """Shape of softplus(alpha x) / alpha, alpha > 0."""
    return ActivationShape(
        mean_on_negative=_mean_on_negative(lambda u: math.log1p(math.exp(u)), alpha),
        max_slope=1.0,
        max_curvature=alpha / 4,
    )


def pssilu_shape(alpha: float, beta: float) -> ActivationShape:
    """Shape of x (sigmoid(alpha x) - beta) / (1 - beta); beta = 0 is PSiLU.

    Requires alpha > 0 and 0 <= beta < 1.
    """
    mean_psilu = _mean_on_negative(lambda u: u / (1 + math.exp(-u)), alpha)
    steepest_fall = SILU_MAX_SLOPE - 1 + beta  # exceeds the asymptotic slope -beta / (1 - beta)
    return ActivationShape(
        mean_on_negative=(mean_psilu - beta * NEGATIVE_MEAN) / (1 - beta),
        max_slope=max(SILU_MAX_SLOPE - beta, steepest_fall) / (1 - beta),
        max_curvature=alpha / (2 * (1 - beta)),
    )


def elu_shape(alpha: float) -> ActivationShape:
    """Shape of x for x > 0, alpha (exp(x) - 1) for x <= 0."""
    mean_exp = math.exp(0.5) * math.erfc(1 / math.sqrt(2))  # E[exp(X) | X < 0]
    return ActivationShape(
        mean_on_negative=alpha * (mean_exp - 1),
        max_slope=max(1.0, abs(alpha)),
        max_curvature=1.0 if alpha == 1 else math.inf,
    )


def tanh_shape() -> ActivationShape:
    """Shape of tanh(x)."""
    return ActivationShape(_mean_on_negative(math.tanh, 1.0), max_slope=1.0, max_curvature=4 / (3 * math.sqrt(3)))


def _mean_on_negative(function: Callable[[float], float], alpha: float) -> float:
    """E[function(alpha X) / alpha | X < 0] of a standard normal X.

    The function must be bounded on negative numbers. Adaptive quadrature is exact to about 1e-12. Beyond the lower
    limit, the integrand is below 1e-17.
    """
    from scipy.integrate import quad

    density = math.sqrt(2 / math.pi)
    value, _ = quad(
        lambda x: function(alpha * x) / alpha * density * math.exp(-x * x / 2), -40 / max(1.0, alpha), 0.0, epsabs=1e-13
    )
    return float(value)
