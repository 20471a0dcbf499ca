"""What every activation can do."""

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
    """Base class of activation functions, fixed and parametric.

    A new one needs `forward` and `shape`; parameters, if any, make it a `ParametricActivation`.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element; shape and dtype stay."""

    @abstractmethod
    def shape(self) -> ActivationShape:
        """Describe the curve at the present parameters."""

    def penalty(self) -> Tensor:
        """Term that the activation adds to the training loss, a scalar; zero unless a subclass says otherwise."""
        parameter = next(self.parameters(), None)
        return torch.zeros((), device=None if parameter is None else parameter.device)

    def clip_gradients(self) -> None:
        """Limit the gradients of parameters that need a limit of their own; call it between backward and step."""


class ParametricActivation(Activation):
    """An activation with a parameter alpha, of shape [1] as in the checkpoints of Dai et al. (2021).

    A subclass states its `formula` and, where there is more than alpha, its `scalars`. While `fused` is set, as in
    training, the formula is computed by one kernel where there is one for the device, dtype and layout at hand.

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
            raise ValueError(f"alpha must be finite, but is {alpha}. Leave it out to start at the published value.")
        super().__init__()
        for name, value in earlier.items():
            self.register_parameter(name, nn.Parameter(torch.tensor([float(value)])))
        self.alpha = nn.Parameter(torch.tensor([float(alpha)]), requires_grad=learn_alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element; shape and dtype stay."""
        scalars = self.scalars()
        # A compiler of whole networks sees the formula itself, which it fuses with what comes before and after.
        if self.fused and not torch.compiler.is_compiling():
            kernel = kernel_for(self.formula, x, scalars)
            if kernel is not None:
                fused: Tensor = FusedPointwise.apply(self.formula, kernel, x, *scalars)
                return fused
        result: Tensor = Pointwise.apply(self.formula, x, *(self._aligned(scalar, x.ndim) for scalar in scalars))
        return result

    def scalars(self) -> tuple[Tensor, ...]:
        """The parameters of the formula, in its order."""
        return (self.alpha,)

    def per_channel(self, channels: int, dim: Literal[1, -1] = 1) -> Self:
        """Give every channel its own parameters, of shape [channels], each starting at the present value.

        Args:
            channels: Size of the channel dimension.
            dim: Where it is: 1 for (N, C, H, W), -1 for (N, L, C) and (N, H, W, C).
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
    """Let all parametric activations of a network use kernels, or their formulas again."""
    for layer in model.modules():
        if isinstance(layer, ParametricActivation):
            layer.fused = fused


def require_nonzero(alpha: float, consequence: str) -> None:
    """Refuse alpha = 0 where the function degenerates there.

    Raises:
        ValueError: alpha is 0.
    """
    if alpha == 0:
        raise ValueError(
            f"alpha must not be 0, where the activation {consequence}. Pass --model.activation.alpha 1, as usual."
        )
