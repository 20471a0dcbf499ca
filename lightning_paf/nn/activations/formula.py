"""Scalar functions with their derivatives."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Formula:
    """A function f(x; p1, p2, ...) and its first derivatives.

    All callables take `(x, p1, p2, ...)` and return differentiable torch expressions. The parameters broadcast against
    x and have its dtype.

    Attributes:
        value: f.
        slope: df/dx.
        parameter_slopes: df/dp, one for each parameter.
        inflections: Takes (p1, p2, ...) and returns all points where f changes between convex and concave or has a
            kink, in ascending order; they broadcast against x. Certificates require them. None without closed form.
    """

    value: Callable[..., Tensor]
    slope: Callable[..., Tensor]
    parameter_slopes: tuple[Callable[..., Tensor], ...]
    inflections: Callable[..., tuple[Tensor, ...]] | None = None
