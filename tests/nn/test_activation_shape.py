"""Closed forms of the shape against autograd on dense grids and sums over the normal density."""

import math

import pytest
import torch

from lightning_paf.nn import activations
from lightning_paf.nn.activations import PSiLU, PSoftplus, PSSiLU

ARGUMENTS = {
    **{name: [()] for name in ("ReLU", "ELU", "SiLU", "Softplus", "Tanh")},
    "PReLU": [(), (0.25,), (-1.5,), (1.0,)],
    "PReLUPlus": [(), (1.5,), (-0.5,)],
    "PELU": [(), (2.0,), (-0.5,)],
    "ReBLU": [(), (0.5,), (-0.5,), (-1.0,), (-2.5,)],
    "PSoftplus": [(0.5,), (-2.0,), (40.0,)],
    "PSiLU": [(0.5,), (-2.0,), (40.0,)],
    "PSSiLU": [(), (3.0, 0.05), (-2.0, -0.3), (1.0, 0.5), (1.0, 0.7), (20.0, 0.9)],
    "PSSiLUFixed": [(2.0, 0.1), (1.0, 0.0)],
}
EXAMPLES = [(name, arguments) for name, examples in ARGUMENTS.items() for arguments in examples]


def derivatives(activation, x):
    """f' and f'' at x by autograd."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
    curvature = torch.zeros_like(x)  # piecewise linear functions have a slope that does not depend on x
    if slope.requires_grad and (found := torch.autograd.grad(slope.sum(), x, allow_unused=True)[0]) is not None:
        curvature = found
    return slope.detach(), curvature


def dense_grid():
    """Points on both sides of 0 at every scale relevant for |alpha| from 0.5 to 40, without 0."""
    positive = torch.cat([torch.logspace(-9, -3, 200), torch.linspace(1e-3, 4, 20_000), torch.logspace(0.6, 5, 2000)])
    return torch.cat([-positive.double().flip(0), positive.double()])


@pytest.mark.parametrize(("name", "arguments"), EXAMPLES)
def test_closed_form_agrees_with_measurement(name, arguments):
    activation = getattr(activations, name)(*arguments).double()
    shape = activation.shape()
    x = dense_grid()
    slope, curvature = derivatives(activation, x)

    jump = abs(slope[x > 0][0] - slope[x < 0][-1])  # over a gap of 2e-9
    if jump > 1e-6:
        assert shape.max_curvature == math.inf
    else:
        assert shape.max_curvature == pytest.approx(curvature.abs().max().item(), rel=1e-5, abs=1e-9)
    assert shape.max_slope == pytest.approx(slope.abs().max().item(), rel=2e-5)

    x = -torch.linspace(0, 12, 100_001, dtype=torch.float64)
    weight = torch.exp(-x.square() / 2)
    mean = torch.trapezoid(activation(x).detach() * weight, x) / torch.trapezoid(weight, x)
    assert shape.mean_on_negative == pytest.approx(mean.item(), abs=1e-7)


def test_parameters_out_of_bounds_are_described_as_the_function_uses_them():
    activation, floored = PSSiLU(), PSoftplus()
    activation.beta.data.fill_(1.5)
    floored.alpha.data.fill_(1e-6)
    assert activation.shape() == PSSiLU(beta=0.9).shape()
    assert floored.shape() == PSoftplus(0.01).shape()


def test_channels_are_described_by_their_mean():
    activation = PSiLU().per_channel(2)
    activation.alpha.data.copy_(torch.tensor([-1.0, 3.0]))
    assert activation.shape() == PSiLU(2.0).shape()
