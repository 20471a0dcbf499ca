"""Piecewise parametric activations of Dai et al. (2021).

Positive and negative inputs have separate formulas. At x = 0 all are 0, and so are their derivatives, except for PELU,
where it is alpha.
"""

import math

import torch
from torch import Tensor

from lightning_paf.nn.activations.base import ParametricActivation, require_nonzero
from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.shape import ActivationShape, elu_shape, piecewise_linear_shape


def at_zero(alpha: Tensor) -> tuple[Tensor, ...]:
    """The kink at 0 of a function with two pieces."""
    return (torch.zeros_like(alpha),)


class PReLU(ParametricActivation):
    """x for x > 0, alpha x below (He et al. 2015); starts as ReLU.

    torch.nn.PReLU starts at alpha = 0.25 instead.

    Args:
        alpha: Initial slope on negative inputs; negative values give positive outputs there.
        learn_alpha: False fixes alpha.

    Raises:
        ValueError: alpha is not finite, or fixed at 1, which makes the network linear.
    """

    formula = Formula(
        value=lambda x, alpha: x.clamp(min=0) + alpha * x.clamp(max=0),
        slope=lambda x, alpha: (x > 0) + alpha * (x < 0),
        parameter_slopes=(lambda x, alpha: x.clamp(max=0),),
        inflections=at_zero,
    )

    def __init__(self, alpha: float = 0.0, learn_alpha: bool = True) -> None:
        if alpha == 1 and not learn_alpha:
            raise ValueError(
                "alpha must not be 1 in a PReLU with fixed alpha, which makes the network linear, got 1. "
                "Pass another --model.activation.alpha, or --model.activation.learn_alpha true."
            )
        super().__init__(alpha, learn_alpha)

    def shape(self) -> ActivationShape:
        """Describe the curve at the current alpha."""
        return piecewise_linear_shape(float(self.alpha.detach().mean()), 1.0)


class PReLUPlus(ParametricActivation):
    """alpha x for x > 0, else 0 (PReLU+ of Dai et al. 2021); starts as ReLU.

    Args:
        alpha: Initial slope on positive inputs, not 0.
        learn_alpha: False fixes alpha.

    Raises:
        ValueError: alpha is 0 or not finite.
    """

    formula = Formula(
        value=lambda x, alpha: alpha * x.clamp(min=0),
        slope=lambda x, alpha: alpha * (x > 0),
        parameter_slopes=(lambda x, alpha: x.clamp(min=0),),
        inflections=at_zero,
    )

    def __init__(self, alpha: float = 1.0, learn_alpha: bool = True) -> None:
        require_nonzero(alpha, "is 0 everywhere")
        super().__init__(alpha, learn_alpha)

    def shape(self) -> ActivationShape:
        """Describe the curve at the current alpha."""
        return piecewise_linear_shape(0.0, float(self.alpha.detach().mean()))


class PELU(ParametricActivation):
    """x for x > 0, alpha (exp(x) - 1) below; starts as ELU.

    Args:
        alpha: Initial height of the negative branch; negative values give positive outputs there.
        learn_alpha: False fixes alpha.

    Raises:
        ValueError: alpha is not finite.
    """

    # Clamped before the exponential: a mask after it would give inf * 0.
    formula = Formula(
        value=lambda x, alpha: x.clamp(min=0) + alpha * x.clamp(max=0).expm1(),
        slope=lambda x, alpha: torch.where(x > 0, 1.0, alpha * x.clamp(max=0).exp()),
        parameter_slopes=(lambda x, alpha: x.clamp(max=0).expm1(),),
        inflections=at_zero,
    )

    def __init__(self, alpha: float = 1.0, learn_alpha: bool = True) -> None:
        super().__init__(alpha, learn_alpha)

    def shape(self) -> ActivationShape:
        """Describe the curve at the current alpha."""
        return elu_shape(float(self.alpha.detach().mean()))


def _root_minus_one(x: Tensor) -> Tensor:
    """sqrt(x^2 + 1) - 1 for x > 0, else 0.

    Computed without cancellation near 0 and without overflow of x^2.
    """
    x = x.clamp(min=0)
    return x * (x / (torch.hypot(x, torch.ones_like(x)) + 1))


class ReBLU(ParametricActivation):
    """x + alpha (sqrt(x^2 + 1) - 1) for x > 0, else 0; starts as ReLU.

    ReBLU of Dai et al. (2021), also called PBLU.

    Args:
        alpha: Initial bend of the positive branch, whose slope grows from 1 to 1 + alpha.
        learn_alpha: False fixes alpha.

    Raises:
        ValueError: alpha is not finite.
    """

    formula = Formula(
        value=lambda x, alpha: x.clamp(min=0) + alpha * _root_minus_one(x),
        slope=lambda x, alpha: (x > 0) * (1 + alpha * (x / torch.hypot(x, torch.ones_like(x)))),
        parameter_slopes=(lambda x, alpha: _root_minus_one(x),),
        inflections=at_zero,
    )

    def __init__(self, alpha: float = 0.0, learn_alpha: bool = True) -> None:
        super().__init__(alpha, learn_alpha)

    def shape(self) -> ActivationShape:
        """Describe the curve at the current alpha."""
        alpha = float(self.alpha.detach().mean())
        return ActivationShape(mean_on_negative=0.0, max_slope=max(1.0, abs(1 + alpha)), max_curvature=math.inf)
