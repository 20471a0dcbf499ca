"""ODE block: solvers, gradients, grids and path lengths."""

import copy
import math
from typing import get_args

import pytest
import torch
from torch import nn
from torchdiffeq import odeint

from lightning_paf.nets.ode.block import ODEBlock, Solver
from lightning_paf.nets.ode.fields import AutonomousField, TimeField
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations

SOLVERS = get_args(Solver)


class Linear(nn.Module):
    """f(z) = A z + c t along the channels, with entries of both signs."""

    def __init__(self, clock=0.0):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[-0.5, 1.0], [-1.0, 0.2]], dtype=torch.float64))
        self.clock = clock

    def forward(self, t, z):
        return torch.einsum("ij,njhw->nihw", self.matrix, z) + self.clock * t


class Tanh(nn.Module):
    def forward(self, t, z):
        return torch.tanh(2 * z) - 0.3 * z


def field(activation=None, kind=AutonomousField, channels=4, seed=0):
    torch.manual_seed(seed)
    made = kind(channels, 2).double()
    if activation is not None:
        swap_activations(made, activation)
    return made.double()


def state(channels=4, n=1):
    return torch.randn(n, channels, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def relative_error(forward, z, gradient_of=None):
    """Distance of the input gradient from central differences of `forward`, relative."""
    v = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(2))
    x = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(((gradient_of or forward)(x) * v).sum(), x)
    h, found = 1e-6, torch.zeros_like(z).flatten()
    for i in range(0, z.numel(), 7):
        d = torch.zeros_like(found).index_fill_(0, torch.tensor([i]), h).view_as(z)
        with torch.no_grad():
            found[i] = ((forward(z + d) - forward(z - d)) * v).sum() / (2 * h)
    return float((gradient.flatten() - found)[::7].norm() / found.norm())


@pytest.mark.parametrize(("kind", "activation"), [(AutonomousField, None), (TimeField, None), (TimeField, PSSiLU)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_input_gradients_are_exact(solver, kind, activation):
    block = ODEBlock(field(activation, kind), step=0.25, solver=solver)
    assert relative_error(block, state()) < 1e-6


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_step_size_control_misses_one_percent_and_is_not_offered(tolerance):
    """Reason for fixed steps; fails when torchdiffeq's adaptive solver becomes usable."""

    def adaptive(z):
        return odeint(kinked, z, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=tolerance, atol=tolerance)[-1]

    kinked = field()
    assert relative_error(adaptive, state()) > 0.01


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4), ("dopri5", 5)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(solver, order):
    z = state(2)
    exact = torch.einsum("ij,njhw->nihw", torch.matrix_exp(Linear().matrix), z)
    errors = [ODEBlock(Linear(), step=step, solver=solver)(z) - exact for step in (0.1, 0.05)]
    assert float(errors[0].norm().detach() / errors[1].norm().detach()) == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("kind", [AutonomousField, TimeField])
def test_euler_is_the_explicit_sum(kind):
    made, z = field(kind=kind), state()
    expected = z
    for k in range(10):
        expected = expected + 0.1 * made(torch.tensor(0.1 * k, dtype=z.dtype), expected)
    torch.testing.assert_close(ODEBlock(made, step=0.1)(z), expected)


def test_parts_of_an_autonomous_solution_join_bit_for_bit():
    for made, same in ((field(), True), (field(kind=TimeField), False)):
        block, z = ODEBlock(made, step=0.05), state()
        half = block.states(z, [0.5])[0]
        assert torch.equal(block.states(half, [1.0], start=0.5)[0], block(z))
        assert torch.allclose(block.states(half, [0.5])[0], block(z), atol=1e-12, rtol=0) == same


def test_several_times_in_one_solution():
    block, z = ODEBlock(field(), step=0.25, t_end=2.0, solver="rk4"), state()
    states = block.states(z, [0.5, 0.625, 2.0])
    assert states.shape == (3, *z.shape)
    assert torch.equal(states[2], block(z))
    middle = (block.states(z, [0.5])[0] + block.states(z, [0.75])[0]) / 2
    torch.testing.assert_close(states[1], middle)


def test_a_time_gets_its_gradient():
    block, z = ODEBlock(Linear(), step=0.25), state(2)
    times = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    block.states(z, times)[1].sum().backward()
    slope = (block.states(z, [1.0])[0] - block.states(z, [0.75])[0]).sum() / 0.25
    torch.testing.assert_close(times.grad[1], slope)


def test_trajectories_of_a_scalar_field_keep_their_order():
    z = torch.linspace(-3, 3, 50, dtype=torch.float64).view(1, 1, 1, -1)
    for solver in SOLVERS:
        out = ODEBlock(Tanh(), t_end=2.0, step=0.25, solver=solver)(z).flatten()  # Lipschitz constant 2.3
        assert (out.diff() > 0).all()


@pytest.mark.parametrize("clock", [0.0, 0.7])
def test_path_length_is_the_sum_of_all_steps(clock):
    made, z = Linear(clock), state(2)
    block = ODEBlock(made, step=0.1)
    out, length = block.path_length(z, 0.5, 1.5)
    states = [z]
    for k in range(15):
        states.append(states[-1] + 0.1 * made(torch.tensor(0.1 * k), states[-1]))
    expected = sum(0.1 * made(torch.tensor(0.1 * k), states[k]).abs() for k in range(5, 15))
    torch.testing.assert_close(length, expected)
    torch.testing.assert_close(out, states[10])
    assert (length >= (states[15] - states[5]).abs() - 1e-6).all()


@pytest.mark.parametrize("window", [(0.9, 1.5), (1.0, 2.0), (0.0, 1.0), (1.0, 1.05)])
def test_path_length_of_a_nonnegative_field_is_the_difference_of_states(window):
    block, z = ODEBlock(field(), step=0.05), state()
    states = block.states(z, [0.05 * k for k in range(1, 41)])
    assert (states.diff(dim=0) >= 0).all()
    begin, end = (z if time == 0 else block.states(z, [time])[0] for time in window)
    out, length = block.path_length(z, *window)
    torch.testing.assert_close(length, end - begin, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(out, block(z), atol=1e-12, rtol=0)


def test_a_field_without_motion_has_length_and_gradient_zero():
    made = field()
    nn.init.zeros_(made.norm2.weight)
    block = ODEBlock(made, step=0.05)
    _, length = block.path_length(state().requires_grad_(), 0.9, 1.5)
    length.mean().backward()
    assert (length == 0).all()
    assert all((parameter.grad == 0).all() for parameter in made.parameters())


def test_only_passes_that_train_are_recorded():
    block, z = ODEBlock(field(), step=0.1), state()
    with block.recording(0.9, 1.5) as records:
        trained = block(z)
        block.eval()(z)
        with torch.no_grad():
            block.train()(z)
        block.requires_grad_(False)(z.requires_grad_())
        block.requires_grad_(True)
        copied = block.path_length(z, 0.9, 1.5)[1].mean()
    assert len(records) == 1
    torch.testing.assert_close(records[0], copied)
    torch.testing.assert_close(trained, block(z))
    copy.deepcopy(block)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [AutonomousField, TimeField])
def test_dtypes_are_kept(dtype, kind):
    torch.manual_seed(0)
    block, z = ODEBlock(kind(4, 2), step=0.05).to(dtype), torch.randn(2, 4, 3, 3).to(dtype)
    out = block(z)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), block.float()(z.float()), rtol=0.1, atol=0.1)


def test_under_autocast_it_is_close():
    block, z = ODEBlock(TimeField(4, 2), step=0.1), torch.randn(2, 4, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(z)
    torch.testing.assert_close(found.float(), block(z), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_end": 0.0}, r"t_end must be finite and > 0, got 0\.0\. Pass --model\.net\.t_end 1\.0"),
        ({"t_end": -1.0}, "t_end must be .*got -1"),
        ({"t_end": math.inf}, "t_end must be .*got inf"),
        ({"step": 0.0}, "step must be .*got 0"),
        ({"step": math.nan}, "step must be .*got nan"),
        ({"step": 0.3}, r"t_end must be a multiple of the step 0\.3, got 1\. Pass --model\.net\.step 0\.3333333333"),
        ({"step": 2.0}, r"t_end must be a multiple of the step 2, got 1\. Pass --model\.net\.step 1\."),
        ({"solver": "heun"}, "solver must be euler, midpoint, rk4 or dopri5, got 'heun'"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ODEBlock(Tanh(), **options)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((1.1, 1.5), "window must begin in"),
        ((0.5, 0.9), "window must begin in"),
        ((1.0, 1.0), "window must begin in"),
        ((0.93, 1.5), r"window times t_end must be a multiple of the step 0\.1, got 0\.93\. Pass 0\.9 in"),
        ((0.9, 1.55), "multiple of the step"),
    ],
)
def test_invalid_windows_are_refused(window, message):
    with pytest.raises(ValueError, match=message), ODEBlock(Tanh(), step=0.1).recording(*window):
        pass
