"""Base classes of activations."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from lightning_paf.nn.activations.formula import Formula
from lightning_paf.nn.activations.kernels import kernel_for
from lightning_paf.nn.activations.pointwise import FusedPointwise, Pointwise
from lightning_paf.nn.activations.shape import ActivationShape


class Activation(nn.Module, ABC):
    """Base class of fixed and parametric activation functions.

    A subclass defines `forward` and `shape`; one with parameters derives from `ParametricActivation`.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element, with the shape and dtype of x."""

    @abstractmethod
    def shape(self) -> ActivationShape:
        """Describe the curve at the current parameters (mean over channels)."""

    def penalty(self) -> Tensor:
        """Term of the training loss, a scalar; zero by default."""
        parameter = next(self.parameters(), None)
        return torch.zeros((), device=None if parameter is None else parameter.device)

    def clip_gradients(self) -> None:
        """Clip gradients of parameters with a separate limit, between backward and step."""


class ParametricActivation(Activation):
    """Base class of activations with a parameter alpha.

    alpha has shape [1], as in the checkpoints of Dai et al. (2021). A subclass defines its `formula` and, for
    parameters other than alpha, its `scalars`. If `fused` is set, as in training, a kernel computes the formula where
    there is one for the device, dtype and layout of the input.

    Args:
        alpha: Initial value, finite.
        learn_alpha: False fixes alpha: it stays in the state dict but takes no gradient.
        earlier: Further learnable parameters by name, registered before alpha (the order of released state dicts).

    Raises:
        ValueError: alpha is not finite.
    """

    formula: ClassVar[Formula]
    alpha: nn.Parameter
    fused: bool = False
    channel_dim: Literal[1, -1] = 1

    def __init__(self, alpha: float, learn_alpha: bool = True, **earlier: float) -> None:
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha}. Leave --model.activation.alpha at its default.")
        super().__init__()
        for name, value in earlier.items():
            self.register_parameter(name, nn.Parameter(torch.tensor([float(value)])))
        self.alpha = nn.Parameter(torch.tensor([float(alpha)]), requires_grad=learn_alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element, with the shape and dtype of x."""
        scalars = self.scalars()
        # When a whole network is compiled, the compiler fuses the formula with its neighbours.
        if self.fused and not torch.compiler.is_compiling():
            kernel = kernel_for(self.formula, x, scalars)
            if kernel is not None:
                fused: Tensor = FusedPointwise.apply(self.formula, kernel, x, *scalars)
                return fused
        # torch.compile cannot trace a function with `setup_context` where gradients are disabled (torch 2.14).
        pointwise = Pointwise.apply if torch.is_grad_enabled() else Pointwise.forward
        result: Tensor = pointwise(self.formula, x, *(self._aligned(scalar, x.ndim) for scalar in scalars))
        return result

    def scalars(self) -> tuple[Tensor, ...]:
        """Parameters of the formula, in its order."""
        return (self.alpha,)

    def per_channel(self, channels: int, dim: Literal[1, -1] = 1) -> Self:
        """Give every channel separate parameters, of shape [channels].

        They start at the current values.

        Args:
            channels: Size of the channel dimension.
            dim: Index of the channel dimension: 1 for (N, C, H, W), -1 for (N, L, C) and (N, H, W, C).
        """
        for name, parameter in list(self.named_parameters(recurse=False)):
            values = parameter.detach().expand(channels).clone()
            self.register_parameter(name, nn.Parameter(values, requires_grad=parameter.requires_grad))
        self.channel_dim = dim
        return self

    def _aligned(self, scalar: Tensor, ndim: int) -> Tensor:
        """View a parameter so that it broadcasts against an input of `ndim` dimensions."""
        if scalar.numel() == 1:
            return scalar.reshape(())
        return scalar if self.channel_dim == -1 else scalar.reshape(-1, *[1] * (ndim - 2))


def fuse_activations(model: nn.Module, fused: bool = True) -> None:
    """Switch kernels on or off in all parametric activations of a network."""
    for layer in model.modules():
        if isinstance(layer, ParametricActivation):
            layer.fused = fused


def require_nonzero(alpha: float, consequence: str) -> None:
    """Check that alpha is not 0, where the function degenerates.

    Raises:
        ValueError: alpha is 0.
    """
    if alpha == 0:
        raise ValueError(
            f"alpha must not be 0, where the activation {consequence}, got 0. Pass --model.activation.alpha 1."
        )
