"""PSSiLU of Dai et al. (2021), with a high but finite curvature."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_paf.nn.activations.base import ParametricActivation, require_nonzero
from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.shape import ActivationShape, pssilu_shape
from lightning_paf.nn.activations.smooth import gate, gated_alpha_slope, gated_inflections, gated_slope

MAX_BETA = 0.9
"""Upper bound of |beta| in the function, which divides by 1 - |beta|."""

_LINEAR = "is linear, and |alpha| has no gradient to leave it"


def _bounded(beta: Tensor) -> Tensor:
    return beta.abs().clamp(max=MAX_BETA)


def _beta_slope(x: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """Derivative by beta, 0 beyond the bound, where only the penalty on |beta| acts."""
    inside = beta.abs() <= MAX_BETA
    return -(beta.sign() * inside) * (x * (1 - gate(x, alpha))) / (1 - _bounded(beta)).square()


PSSILU_FORMULA = Formula(
    value=lambda x, beta, alpha: x * ((gate(x, alpha) - _bounded(beta)) / (1 - _bounded(beta))),
    slope=lambda x, beta, alpha: (gated_slope(x, alpha) - _bounded(beta)) / (1 - _bounded(beta)),
    parameter_slopes=(_beta_slope, lambda x, beta, alpha: gated_alpha_slope(x, alpha) / (1 - _bounded(beta))),
    inflections=lambda beta, alpha: gated_inflections(alpha),  # those of PSiLU, since the rest is linear
)


class PSSiLUFixed(ParametricActivation):
    """x (sigmoid(|alpha| x) - beta) / (1 - beta) with a constant beta.

    Checkpoints contain beta as a buffer.

    Args:
        alpha: Initial value, not 0.
        beta: Constant, 0 <= beta <= 0.9.
        learn_alpha: False fixes alpha.

    Raises:
        ValueError: alpha is 0 or not finite, or beta is out of range.
    """

    formula = PSSILU_FORMULA
    beta: Tensor

    def __init__(self, alpha: float = 1.0, beta: float = 0.3, learn_alpha: bool = True) -> None:
        require_nonzero(alpha, _LINEAR)
        if not 0 <= beta <= MAX_BETA:
            raise ValueError(
                f"beta must be in [0, {MAX_BETA}] (the function divides by 1 - beta), got {beta}. "
                "Pass --model.activation.beta 0.3, as in the paper's code."
            )
        super().__init__(alpha, learn_alpha)
        self.register_buffer("beta", torch.tensor([float(beta)]))

    def scalars(self) -> tuple[Tensor, ...]:
        """Parameters of the formula, in its order."""
        return (self.beta, self.alpha)

    def shape(self) -> ActivationShape:
        """Describe the curve at the current alpha."""
        return pssilu_shape(float(self.alpha.detach().abs().mean()), float(_bounded(self.beta)))


class PSSiLU(ParametricActivation):
    """x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|) with learned alpha and beta.

    This is the PSSiLU of the main tables of Dai et al. (2021). The loss includes the penalty
    `penalty_weight * |beta| ** penalty_power`, and the gradient of beta (including the penalty) is clipped separately.
    The function bounds |beta| at 0.9; beyond, only the penalty and weight decay act on beta.

    Args:
        alpha: Initial value, not 0.
        beta: Initial value, 0 < |beta| <= 0.9. At 0 the gradient of |beta| is 0, so beta would never change.
        learn_alpha: False fixes alpha; beta is still learned.
        penalty_weight: Weight of the penalty on beta; 10 in the paper's code.
        penalty_power: 1 as in the paper, or 2.
        beta_clip: Largest norm of beta's gradient; 0.01 in the paper's code for PGD training, 0.1 for TRADES.

    Raises:
        ValueError: An argument is out of range.
    """

    formula = PSSILU_FORMULA
    beta: nn.Parameter

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1e-8,
        learn_alpha: bool = True,
        *,
        penalty_weight: float = 10.0,
        penalty_power: Literal[1, 2] = 1,
        beta_clip: float = 0.01,
    ) -> None:
        require_nonzero(alpha, _LINEAR)
        if not 0 < abs(beta) <= MAX_BETA:
            raise ValueError(
                f"beta must satisfy 0 < |beta| <= {MAX_BETA} (its gradient is 0 at 0, and the function divides by "
                f"1 - |beta|), got {beta}. Pass --model.activation.beta 1e-8, the published start."
            )
        if not (0 <= penalty_weight < math.inf and beta_clip > 0) or penalty_power not in (1, 2):
            raise ValueError(
                "penalty_weight must be finite and at least 0, penalty_power 1 or 2 and beta_clip above 0, got "
                f"{penalty_weight}, {penalty_power} and {beta_clip}. "
                "Leave --model.activation.penalty_weight, .penalty_power and .beta_clip at their defaults."
            )
        super().__init__(alpha, learn_alpha, beta=beta)
        self.penalty_weight = penalty_weight
        self.penalty_power = penalty_power
        self.beta_clip = beta_clip

    def scalars(self) -> tuple[Tensor, ...]:
        """Parameters of the formula, in its order."""
        return (self.beta, self.alpha)

    def penalty(self) -> Tensor:
        """`penalty_weight * |beta| ** penalty_power`, a scalar; summed over channels."""
        return self.penalty_weight * self.beta.abs().pow(self.penalty_power).sum()

    def clip_gradients(self) -> None:
        """Clip the gradient of beta to norm `beta_clip`."""
        nn.utils.clip_grad_norm_(self.beta, self.beta_clip)

    def shape(self) -> ActivationShape:
        """Describe the curve at the current parameters."""
        return pssilu_shape(float(self.alpha.detach().abs().mean()), float(_bounded(self.beta.detach()).mean()))
