"""Standalone neural ODE: equations, limits, initial weights and bad input."""

import copy

import pytest
import torch
from torch import nn

from lightning_paf.attacks import PGD
from lightning_paf.nets import SNODE, SNODEResNet
from lightning_paf.nn.activations import Softplus
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec, dataset_spec

SMALL = {"image_size": 4, "t_end": 2.0, "step": 0.25}


def net(**options):
    torch.manual_seed(0)
    made = SNODE(**SMALL | options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def image(n=3, side=4):
    torch.manual_seed(1)
    return torch.rand(n, 1, side, side, dtype=torch.float64)


@pytest.mark.parametrize("cls", [SNODE, SNODEResNet])
def test_parameter_count_is_that_of_the_paper(cls):
    assert sum(p.numel() for p in cls().parameters()) == 150 * (196**2 + 196) == 5_791_800


def test_logits_are_those_of_the_equations():
    """Float64: ink is -1, classes are the first components."""
    model, x = net(), image()
    z = -x.flatten(1)
    for i in range(8):
        z = z + 0.25 * torch.tanh(z @ model.weight[i].T + model.bias[i])
    torch.testing.assert_close(model(x), z[:, :10], atol=1e-14, rtol=1e-14)
    torch.testing.assert_close(model.terminal_state(x), z, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize(("solver", "order"), [("midpoint", 2), ("rk4", 4), ("dopri5", 5)])
def test_solvers_have_their_order_and_the_limit_of_constant_weights(solver, order):
    """The matrix exponential, without activation."""
    torch.manual_seed(0)
    weight, bias, x = 0.2 * torch.randn(16, 16).double(), torch.randn(16).double(), image()
    flow = torch.zeros(17, 17, dtype=torch.float64)
    flow[:16, :16], flow[:16, 16] = weight, bias
    start = torch.cat([-x.flatten(1), torch.ones(3, 1, dtype=torch.float64)], dim=1)
    exact = (start @ torch.matrix_exp(2 * flow).T)[:, :16]

    def error(step):
        model = net(step=step, solver=solver)
        model.activation = nn.Identity()
        with torch.no_grad():
            model.weight.copy_(weight)
            model.bias.copy_(bias)
            return (model.terminal_state(x) - exact).abs().max()

    assert 0.6 * 2**order < error(0.25) / error(0.125) < 2 * 2**order
    assert error(0.125) < 0.03


@pytest.mark.parametrize("solver", ["midpoint", "rk4", "dopri5"])
def test_input_gradients_of_solvers_are_exact(solver):
    model, x = net(solver=solver), image(1)
    model.activation = nn.ReLU()
    assert torch.autograd.gradcheck(model, x.requires_grad_(), atol=1e-5)
    assert (model(x) - net()(x)).abs().max() < 1


def test_weights_are_linear_between_steps_and_constant_in_the_last_one():
    model, z = net(solver="rk4"), image().flatten(1)
    for time, low, high in ((0.0, 0, 0), (0.125, 0, 1), (1.75, 7, 7), (1.9, 7, 7), (2.0, 7, 7)):
        weight, bias = ((p[low] + p[high]) / 2 for p in (model.weight, model.bias))
        torch.testing.assert_close(model._velocity(torch.tensor(time), z), torch.tanh(z @ weight.T + bias))


def test_a_solver_keeps_the_parameters_and_changes_the_fingerprint():
    plain, other = net(), net(solver="dopri5")
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert "solver" not in repr(plain)
    assert "solver=dopri5" in repr(copy.deepcopy(other))
    x = image(side=8).float()
    attacked = PGD(steps=4)(Classifier(copy.deepcopy(other).float(), dataset_spec("digits")), x, torch.arange(3))
    assert not torch.equal(attacked, x)


def test_images_of_28_pixels_are_averaged_to_14():
    x = torch.rand(2, 1, 28, 28)
    model = SNODE(t_end=0.02)
    means = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    torch.testing.assert_close(model(x), model(means))


def test_without_weights_the_state_is_the_image():
    model, x = net(), image()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model.terminal_state(x), -x.flatten(1))
    model.activation = Softplus()
    torch.testing.assert_close(model.terminal_state(x), -x.flatten(1) + model.rest_state())


def test_a_short_interval_returns_the_image():
    x = image()
    for t_end in (1e-3, 1e-6):
        assert (net(t_end=t_end, step=t_end).terminal_state(x) + x.flatten(1)).abs().max() < 1.1 * t_end


def test_halving_the_step_halves_the_error():
    """Weights that are polynomials of the time, on ever finer grids."""
    torch.manual_seed(0)
    a, b = (0.5 * torch.randn(2, 16, 16, dtype=torch.float64)).unbind()
    x, states = image(), []
    for n in (20, 40, 80, 1280):
        model = SNODE(image_size=4, t_end=2.0, step=2 / n).double()
        t = (torch.arange(n, dtype=torch.float64) * 2 / n)[:, None, None]
        with torch.no_grad():
            model.weight.copy_(a + t * b)
            model.bias.copy_(0.1 * t[:, 0])
            states.append(model.terminal_state(x))
    errors = [float((state - states[-1]).norm()) for state in states[:-1]]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.25)


def test_initial_weights_are_smooth_and_those_of_the_control_independent():
    torch.manual_seed(0)
    smooth, rough = SNODE(), SNODEResNet()
    knots = smooth.weight[[0, 50, 100]] * 196
    assert knots.std((1, 2)).tolist() == pytest.approx([1, 1, 1], rel=0.02)
    assert torch.corrcoef(knots.flatten(1)).fill_diagonal_(0).abs().max() < 0.02
    third = smooth.weight.diff(n=3, dim=0)  # a cubic through four points
    torch.testing.assert_close(third, third[:1].expand_as(third), atol=2e-8, rtol=0)
    assert (rough.weight * 196).std().item() == pytest.approx(1, rel=0.01)
    assert rough.weight.diff(dim=0).square().sum() > 100 * smooth.weight.diff(dim=0).square().sum()


@pytest.mark.parametrize("t_end", [0.5, 1.0, 2.0, 2.4, 7.0])
def test_every_interval_has_initial_weights(t_end):
    model = SNODE(image_size=4, t_end=t_end, step=0.1)
    assert model.weight.shape == (round(t_end / 0.1), 16, 16)
    assert model.weight.isfinite().all()
    assert model.weight.std() > 0


def test_the_features_of_a_classifier_are_the_state():
    model = Classifier(net(), DatasetSpec("tiny", 10, 4, (0.0,), (1.0,)), normalize=False).double()
    out = model.outputs(image())
    assert torch.equal(out.features, model.net.terminal_state(image()))
    assert torch.equal(out.logits, out.features[:, :10])
    assert not any("fc" in key for key in model.state_dict())


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (SNODE, {"t_end": 0.0}, r"t_end must be finite and > 0, got 0\.0\. Pass --model\.net\.t_end 3\.0"),
        (SNODE, {"t_end": -1.0}, "t_end must be finite and > 0, got -1"),
        (SNODE, {"t_end": torch.inf}, "t_end must be finite and > 0, got inf"),
        (SNODE, {"step": 0.0}, "step must be finite and > 0, got 0"),
        (SNODE, {"step": torch.nan}, "step must be finite and > 0, got nan"),
        (SNODE, {"step": 0.3}, r"multiple of the step 0\.3, got 2\. Pass --model\.net\.step 0\.2857142857"),
        (SNODE, {"step": 5.0}, r"multiple of the step 5, got 2\. Pass --model\.net\.step 2"),
        (SNODE, {"image_size": 3}, r"image_size must give at least 10 components.*got 3 .*--model\.net\.image_size 4"),
        (SNODE, {"image_size": 0}, "image_size must give at least 10 components"),
        (SNODEResNet, {"depth": 0}, r"depth must be at least 1, got 0\. Pass --model\.net\.depth 150"),
        (SNODE, {"solver": "ode45"}, "solver must be euler, midpoint, rk4 or dopri5, got 'ode45'"),
        (SNODEResNet, {"step": -1.0}, "step must be finite and > 0, got -1"),
    ],
)
def test_values_outside_their_range_are_refused(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**(SMALL if cls is SNODE else {}) | options)


def test_colour_images_have_three_times_the_components():
    model = Classifier(SNODE(in_channels=3, image_size=8, t_end=0.1), dataset_spec("cifar10"))
    assert model.num_features == 192
