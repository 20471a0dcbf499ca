"""Scalar functions of activation layers, for lines above and below them."""

from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor, nn

from lightning_paf.nn.activations import (
    ELU,
    PELU,
    ParametricActivation,
    PReLU,
    PSiLU,
    PSoftplus,
    ReLU,
    SiLU,
    Softplus,
    Tanh,
)
from lightning_paf.nn.activations.formula import Formula

TANH = Formula(
    value=lambda x: x.tanh(),
    slope=lambda x: 1 - x.tanh().square(),
    parameter_slopes=(),
    inflections=lambda: (torch.zeros(()),),
)
SIGMOID = Formula(
    value=lambda x: x.sigmoid(),
    slope=lambda x: x.sigmoid() * (-x).sigmoid(),
    parameter_slopes=(),
    inflections=lambda: (torch.zeros(()),),
)


@dataclass(frozen=True)
class Curve:
    """A formula with its parameters.

    Attributes:
        formula: Formula with inflection points.
        parameters: Its parameters, which broadcast against inputs.
        sign: 1, or -1 for the negative of the function.
    """

    formula: Formula
    parameters: tuple[Tensor, ...] = ()
    sign: int = 1

    def value(self, x: Tensor) -> Tensor:
        """Evaluate."""
        return self.sign * self.formula.value(x, *self.parameters)

    def slope(self, x: Tensor) -> Tensor:
        """Derivative."""
        return self.sign * self.formula.slope(x, *self.parameters)

    def inflections(self, like: Tensor) -> list[Tensor]:
        """Points between which the function is convex or concave, in ascending order."""
        assert self.formula.inflections is not None  # checked by `curve_of`
        return [point.to(like) for point in self.formula.inflections(*self.parameters)]

    def negative(self) -> "Curve":
        """The function with the opposite sign."""
        return replace(self, sign=-self.sign)

    def to(self, x: Tensor) -> "Curve":
        """Convert the parameters to dtype and device of `x`."""
        return replace(self, parameters=tuple(parameter.to(x) for parameter in self.parameters))

    def at(self, mask: Tensor) -> "Curve":
        """The functions of the selected elements, for inputs shaped like `x[mask]`."""
        chosen = (p.expand(mask.shape)[mask] if p.dim() else p for p in self.parameters)
        return replace(self, parameters=tuple(chosen))


@singledispatch
def curve_of(module: nn.Module, dims: int) -> Curve | None:
    """The scalar function of an activation layer.

    None if it has none with known inflection points.

    Args:
        module: An activation layer.
        dims: Number of dimensions of its input, with the batch.
    """
    del module, dims
    return None


@curve_of.register
def _(module: ParametricActivation, dims: int) -> Curve | None:
    if module.formula.inflections is None or type(module).forward is not ParametricActivation.forward:
        return None
    return Curve(module.formula, tuple(module._aligned(scalar, dims) for scalar in module.scalars()))


@curve_of.register(ReLU)
@curve_of.register(nn.ReLU)
def _(module: nn.Module, dims: int) -> Curve:
    return _fixed(PReLU.formula, 0.0)


@curve_of.register
def _(module: nn.LeakyReLU, dims: int) -> Curve:
    return _fixed(PReLU.formula, module.negative_slope)


@curve_of.register(ELU)
def _(module: nn.Module, dims: int) -> Curve:
    return _fixed(PELU.formula, 1.0)


@curve_of.register
def _(module: nn.ELU, dims: int) -> Curve:
    return _fixed(PELU.formula, module.alpha)


@curve_of.register(SiLU)
@curve_of.register(nn.SiLU)
def _(module: nn.Module, dims: int) -> Curve:
    return _fixed(PSiLU.formula, 1.0)


@curve_of.register(Softplus)
def _(module: nn.Module, dims: int) -> Curve:
    return _fixed(PSoftplus.formula, 1.0)


@curve_of.register
def _(module: nn.PReLU, dims: int) -> Curve:
    return Curve(PReLU.formula, (module.weight.view(-1, *[1] * (dims - 2)),))


@curve_of.register(Tanh)
@curve_of.register(nn.Tanh)
def _(module: nn.Module, dims: int) -> Curve:
    return Curve(TANH)


@curve_of.register
def _(module: nn.Sigmoid, dims: int) -> Curve:
    return Curve(SIGMOID)


def _fixed(formula: Formula, alpha: float) -> Curve:
    return Curve(formula, (torch.tensor(alpha, dtype=torch.float64),))
