"""Terminal cost: equations, adjoint, sensitivity problem, duality and step length."""

import copy
from functools import partial

import pytest
import torch
from helpers.fakes import tiny_classifier
from helpers.training import ATTACK
from torch import nn
from torch.nn.functional import one_hot, pad

from lightning_paf.nets import SNODE
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.sobolev_ncg import SobolevNCG, increasing_root
from lightning_paf.objectives import TerminalCost
from lightning_paf.specs import DatasetSpec

H, N, B, D, K = 0.25, 8, 5, 16, 10
ALL = {"squared": 0.7, "cross_entropy": 0.4, "rest": 0.3, "energy": 0.2}
WEIGHTS = [{"squared": 1.0}, {"squared": 0.0, "cross_entropy": 1.0}, ALL]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = SNODE(image_size=4, t_end=H * N, step=H)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Classifier(net, DatasetSpec("tiny", K, 4, (0.0,), (1.0,)), normalize=False).double()


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    return torch.rand(B, 1, 4, 4, dtype=torch.float64), torch.arange(B)


@pytest.fixture(scope="module")
def direction(model):
    torch.manual_seed(2)
    return {p: torch.randn_like(p) for p in model.parameters()}


def trajectory(net, x):
    """States x_i (N + 1 of them) and slopes sigma'_i of tanh."""
    states, slopes = [-x.flatten(1)], []
    for w, b in zip(net.weight.detach(), net.bias.detach(), strict=True):
        slopes.append(1 - torch.tanh(states[-1] @ w.T + b) ** 2)
        states.append(states[-1] + H * torch.tanh(states[-1] @ w.T + b))
    return states, slopes


def terminal_adjoint(state, y, weights):
    """lambda(T); T sigma(0) is 0 for tanh."""
    a = TerminalCost(**weights)
    target = pad(one_hot(y, K), (0, D - K))
    softmax = pad(state[:, :K].softmax(1), (0, D - K))
    return (a.squared * (state - target) + a.cross_entropy * (softmax - target) + a.rest * state) / B


def adjoint(net, states, slopes, y, weights):
    """Gradients by W and b of the adjoint equations, and u_i = sigma'_i lambda_{i+1}."""
    adjoints, energy = terminal_adjoint(states[-1], y, weights), TerminalCost(**weights).energy
    by_w, by_b, us = [], [], []
    for i in reversed(range(N)):
        u, w = slopes[i] * adjoints, net.weight[i].detach()
        us.insert(0, u)
        by_w.insert(0, H * (energy * w + u.T @ states[i]))
        by_b.insert(0, H * (energy * net.bias[i].detach() + u.sum(0)))
        adjoints = adjoints + H * u @ w
    return torch.stack(by_w), torch.stack(by_b), us


def sensitivity(net, states, slopes, direction):
    """xi(T) of the Euler scheme of the sensitivity problem."""
    dw, db = direction[net.weight], direction[net.bias]
    xi = torch.zeros_like(states[0])
    for i in range(N):
        xi = xi + H * slopes[i] * (xi @ net.weight[i].detach().T + db[i] + states[i] @ dw[i].T)
    return xi


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_cost_is_that_of_the_equation_and_its_gradient_that_of_the_adjoint(model, batch, weights):
    x, y = batch
    states, slopes = trajectory(model.net, x)
    z, a = states[-1], TerminalCost(**weights)
    expected = (
        a.squared / 2 * (z - pad(one_hot(y, K), (0, D - K))).square().sum() / B
        - a.cross_entropy * z[:, :K].log_softmax(1)[range(B), y].mean()
        + a.rest / 2 * z.square().sum() / B
        + a.energy / 2 * H * (model.net.weight.square().sum() + model.net.bias.square().sum())
    )
    result = a(model, x, y, ATTACK)
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=0)
    found = torch.autograd.grad(result.loss, [model.net.weight, model.net.bias])
    for gradient, by_hand in zip(found, adjoint(model.net, states, slopes, y, weights), strict=False):
        assert (gradient - by_hand).norm() <= 1e-10 * by_hand.norm()


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_slope_is_that_of_the_linearised_state(model, batch, direction, weights):
    """phi at several lengths, and its derivative by central differences."""
    (x, y), a, net = batch, TerminalCost(**weights), model.net
    states, slopes = trajectory(net, x)
    xi, z = sensitivity(net, states, slopes, direction), states[-1]
    a(model, x, y, ATTACK)
    phi = a.slope(model, direction)
    for length in (0.0, 0.3, 2.0):
        expected = (xi * terminal_adjoint(z + length * xi, y, weights)).sum()
        for p, d in direction.items():
            expected += a.energy * H * (d * (p.detach() + length * d)).sum()
        value, derivative = phi(length)
        assert value == pytest.approx(float(expected), rel=1e-10)
        assert derivative == pytest.approx((phi(length + 1e-5)[0] - phi(length - 1e-5)[0]) / 2e-5, rel=1e-6)


def test_sensitivity_and_adjoint_are_dual(model, batch, direction):
    """<xi(T), lambda(T)> = sum_i h (<db_i, u_i> + <dW_i, u_i x_i^T>)."""
    x, y = batch
    states, slopes = trajectory(model.net, x)
    xi = sensitivity(model.net, states, slopes, direction)
    left = (xi * terminal_adjoint(states[-1], y, ALL)).sum()
    _, _, us = adjoint(model.net, states, slopes, y, ALL)
    dw, db = direction[model.net.weight], direction[model.net.bias]
    right = sum(H * ((db[i] * us[i]).sum() + (dw[i] * (us[i].T @ states[i])).sum()) for i in range(N))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_differences_approach_the_sensitivity_with_first_order(model, batch, direction):
    x, _ = batch
    states, slopes = trajectory(model.net, x)
    xi, errors = sensitivity(model.net, states, slopes, direction), []
    for e in (1e-3, 5e-4):
        moved = {name: p + e * direction[p] for name, p in model.net.named_parameters()}
        net = SNODE(image_size=4, t_end=H * N, step=H).double()
        net.load_state_dict(moved)
        with torch.no_grad():
            errors.append(float(((net.terminal_state(x) - states[-1]) / e - xi).norm() / xi.norm()))
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_the_step_length_is_the_root_and_has_a_closed_form_without_cross_entropy(model, batch, weights):
    (x, y), a = batch, TerminalCost(**weights)
    loss = a(model, x, y, ATTACK).loss
    gradients = torch.autograd.grad(loss, [*model.parameters()])
    phi = a.slope(model, {p: -g for p, g in zip(model.parameters(), gradients, strict=True)})
    assert phi(0.0)[0] == pytest.approx(-float(sum(g.square().sum() for g in gradients)), rel=1e-10)
    length = increasing_root(phi)
    assert abs(phi(length)[0]) < 1e-8
    if a.cross_entropy == 0:
        assert length == pytest.approx(-phi(0.0)[0] / phi(0.0)[1], rel=1e-12)


@pytest.fixture
def affine(batch):
    """A network that is affine in its biases, the only parameters; its optimiser and closure."""
    torch.manual_seed(0)
    net = SNODE(2, image_size=2, t_end=1.0, step=0.5)
    net.activation = nn.Identity()
    nn.init.normal_(net.weight, std=0.5).requires_grad_(False)
    classifier = Classifier(net, DatasetSpec("tiny", 2, 2, (0.0,), (1.0,)), normalize=False).double()
    x, y = batch[0][:, :, :2, :2], batch[1] % 2
    cost = TerminalCost()

    def closure():
        net.bias.grad = None
        loss = cost(classifier, x, y, ATTACK).loss
        loss.backward()
        return loss

    def optimizer(**options):
        made = SobolevNCG([net.bias], **options)
        made.sensitivity = partial(cost.slope, classifier)
        return made

    return net, optimizer, closure


def test_one_exact_step_makes_the_new_gradient_orthogonal(affine):
    net, optimizer, closure = affine
    closure()
    before, start = net.bias.grad.clone(), net.bias.detach().clone()
    optimizer(iterations=1).step(closure)
    closure()
    assert (net.bias - start).norm() > 0.1
    assert abs((net.bias.grad * before).sum()) < 1e-12
    torch.testing.assert_close(net.bias - start, -((net.bias - start).norm() / before.norm()) * before)


def test_conjugate_gradients_solve_an_affine_network_in_as_many_iterations_as_its_state_has_dimensions(affine):
    net, optimizer, closure = affine
    start, ends = copy.deepcopy(net.state_dict()), []
    for formula in ("fr", "pr+"):
        net.load_state_dict(start)
        optimizer(iterations=4, formula=formula).step(closure)
        closure()
        assert net.bias.grad.abs().max() < 1e-10
        ends.append(net.bias.detach().clone())
    torch.testing.assert_close(*ends)


def test_other_networks_have_the_logits_as_state(batch):
    model, (x, y) = tiny_classifier().double(), batch
    x = x.expand(-1, 3, -1, -1)
    a = TerminalCost()
    loss = a(model, x, y, ATTACK).loss
    torch.testing.assert_close(loss, (model(x) - one_hot(y, K)).square().sum() / 2 / B)
    gradients = torch.autograd.grad(loss, [*model.parameters()])
    phi = a.slope(model, {p: -g for p, g in zip(model.parameters(), gradients, strict=True)})
    assert phi(0.0)[0] == pytest.approx(-float(sum(g.square().sum() for g in gradients)), rel=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"squared": -1.0}, r"squared must be finite and >= 0, got -1\.0"),
        ({"squared": 0.0}, "squared must be > 0 without cross_entropy, got 0"),
        ({"energy": torch.nan}, "energy must be finite and >= 0, got nan"),
    ],
)
def test_weights_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TerminalCost(**options)


@pytest.mark.parametrize("term", ["rest", "energy"])
def test_terms_of_standalone_networks_are_refused_for_others(term):
    with pytest.raises(ValueError, match=r"rest and energy must be 0 for .*--model\.net SNODE"):
        TerminalCost(**{term: 0.1}).bind(tiny_classifier())
