"""Baseline activations without parameters."""

import torch.nn.functional as F
from torch import Tensor

from lightning_paf.nn.activations.base import Activation
from lightning_paf.nn.activations.shape import (
    ActivationShape,
    elu_shape,
    piecewise_linear_shape,
    psoftplus_shape,
    pssilu_shape,
    tanh_shape,
)


class ReLU(Activation):
    """max(x, 0); the derivative at 0 is 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element, with the shape and dtype of x."""
        return F.relu(x)

    def shape(self) -> ActivationShape:
        """Describe the curve."""
        return piecewise_linear_shape(0.0, 1.0)


class ELU(Activation):
    """x for x > 0, exp(x) - 1 below (Clevert et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element, with the shape and dtype of x."""
        return F.elu(x)

    def shape(self) -> ActivationShape:
        """Describe the curve."""
        return elu_shape(1.0)


class SiLU(Activation):
    """x * sigmoid(x) (Elfwing et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element, with the shape and dtype of x."""
        return F.silu(x)

    def shape(self) -> ActivationShape:
        """Describe the curve."""
        return pssilu_shape(1.0, beta=0.0)


class Softplus(Activation):
    """ln(1 + exp(x)) (Dugas et al. 2001)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element, with the shape and dtype of x."""
        return -F.logsigmoid(-x)  # F.softplus switches to the identity at 20, with a jump of 2e-9

    def shape(self) -> ActivationShape:
        """Describe the curve."""
        return psoftplus_shape(1.0)


class Tanh(Activation):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element, with the shape and dtype of x."""
        return F.tanh(x)

    def shape(self) -> ActivationShape:
        """Describe the curve."""
        return tanh_shape()
