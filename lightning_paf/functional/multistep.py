"""Coefficients of linear multistep schemes, and their zero stability."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Real = TypeVar("Real", float, Tensor)

OPTIMAL = -1.8
"""Member of `three_step_family` with the smallest extraneous roots, both -1/3."""

_ON_CIRCLE = 1e-6  # a double root is known to half of the digits only


def three_step_family(parameter: Real) -> tuple[Real, Real, Real, Real]:
    """Coefficients (a0, a1, a2, b0) of a consistent scheme of order 2.

    `x_{n+1} = a0 x_n + a1 x_{n-1} + a2 x_{n-2} + b0 F(x_n)`; Chen, Jin, Shang (2022). It is zero-stable for parameters
    up to -1 and above 1/3. The limit for infinity is (3/4, 0, 1/4, 3/2).

    Args:
        parameter: Not 0; a tensor gives tensors.
    """
    p = parameter
    return (3 * p + 3) / (4 * p), -1 / p, (p + 1) / (4 * p), (3 * p - 1) / (2 * p)


def is_consistent(coefficients: Sequence[float]) -> bool:
    """Whether the coefficients of the states sum to 1, so that 1 is a root."""
    return math.isclose(sum(coefficients[:-1]), 1, abs_tol=_ON_CIRCLE)


def root_moduli(coefficients: Sequence[float]) -> NDArray[np.float64]:
    """Moduli of the extraneous roots, largest first.

    These are all roots of the characteristic polynomial but one principal root 1, which inconsistent schemes lack.

    Args:
        coefficients: (a0, ..., ak, b0); the polynomial is `r^(k+1) - a0 r^k - ... - ak`.
    """
    return np.sort(np.abs(_extraneous_roots(coefficients)))[::-1]


def _extraneous_roots(coefficients: Sequence[float]) -> NDArray[np.complex128]:
    roots = np.roots([1.0, *(-float(a) for a in coefficients[:-1])]).astype(np.complex128)
    return np.delete(roots, np.argmin(np.abs(roots - 1))) if is_consistent(coefficients) else roots


def is_zero_stable(coefficients: Sequence[float]) -> bool:
    """Whether a consistent scheme fulfils the root condition.

    All roots lie in the closed unit disc, and those on the circle are simple.
    """
    roots = np.append(_extraneous_roots(coefficients), 1)
    on_circle = [root for root in roots if abs(abs(root) - 1) <= _ON_CIRCLE]
    apart = all(abs(a - b) > math.sqrt(_ON_CIRCLE) for i, a in enumerate(on_circle) for b in on_circle[:i])
    return is_consistent(coefficients) and apart and bool((np.abs(roots) <= 1 + _ON_CIRCLE).all())
