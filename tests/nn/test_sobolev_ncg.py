"""Nonlinear conjugate gradients: quadratics, exact steps, formulas, root and bad input."""

import math

import pytest
import torch
from torch import nn

from lightning_paf.nn.sobolev import sobolev_gradient
from lightning_paf.nn.sobolev_ncg import SobolevNCG, increasing_root

FORMULAS = ["fr", "pr+", "fr-pr", "hs", "dy"]


class Quadratic:
    """Cost |A w - y|^2 / 2 of a model that is linear in w."""

    def __init__(self, n=6, rows=9):
        torch.manual_seed(0)
        self.a, self.y = torch.randn(rows, n, dtype=torch.float64), torch.randn(rows, dtype=torch.float64)
        self.w = nn.Parameter(torch.zeros(n, dtype=torch.float64))
        self.best = torch.linalg.lstsq(self.a, self.y[:, None]).solution[:, 0]

    def optimizer(self, **options):
        made = SobolevNCG([self.w], **options)
        made.sensitivity = self.slope
        return made

    def closure(self):
        self.w.grad = None
        loss = (self.a @ self.w - self.y).square().sum() / 2
        loss.backward()
        return loss

    def slope(self, direction):
        xi, residual = self.a @ direction[self.w], self.a @ self.w.detach() - self.y
        return lambda length: (float(xi @ (residual + length * xi)), float(xi @ xi))


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_quadratic_takes_as_many_iterations_as_it_has_dimensions(formula):
    problem = Quadratic()
    loss = problem.optimizer(formula=formula, iterations=6).step(problem.closure)
    assert loss == problem.y.square().sum() / 2, "of the first evaluation"
    torch.testing.assert_close(problem.w.detach(), problem.best, atol=1e-9, rtol=1e-9)


def test_all_formulas_agree_on_a_quadratic_and_differ_from_steepest_descent():
    found = {}
    for formula in FORMULAS:
        problem = Quadratic()
        problem.optimizer(formula=formula, iterations=3).step(problem.closure)
        found[formula] = problem.w.detach()
    for w in found.values():
        torch.testing.assert_close(w, found["fr"], atol=1e-10, rtol=1e-10)
    problem = Quadratic()
    for _ in range(3):  # each step restarts
        problem.optimizer(iterations=1).step(problem.closure)
    assert (problem.w - found["fr"]).norm() > 1e-2


def test_after_an_exact_step_the_gradient_is_orthogonal_to_the_direction():
    problem = Quadratic()
    problem.optimizer(iterations=1).step(problem.closure)
    moved = problem.w.detach().clone()
    problem.closure()
    assert abs(problem.w.grad @ moved) < 1e-10


def test_lr_is_a_factor_of_the_step():
    whole, half = Quadratic(), Quadratic()
    whole.optimizer(iterations=1).step(whole.closure)
    half.optimizer(iterations=1, lr=0.5).step(half.closure)
    torch.testing.assert_close(whole.w, 2 * half.w)


def test_directions_are_sobolev_gradients_of_functions_of_depth_only():
    """A cost whose minimum along any direction is at the same length, 1."""
    torch.manual_seed(0)
    w, b, alpha = (nn.Parameter(torch.randn(*shape)) for shape in ((8, 3, 3), (8, 3), (1,)))
    before = [p.detach().clone() for p in (w, b, alpha)]
    optimizer = SobolevNCG([w, b, alpha], iterations=1, sobolev=2.0)
    optimizer.sensitivity = lambda direction: lambda length: (length - 1, 1.0)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() / 2 for p in (w, b, alpha))
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = [-sobolev_gradient(before[0], 2.0), -sobolev_gradient(before[1], 2.0), -before[2]]
    for p, start, step in zip((w, b, alpha), before, expected, strict=True):
        torch.testing.assert_close(p.detach() - start, step)


def test_a_direction_along_which_the_cost_rises_is_replaced_by_steepest_descent():
    problem, seen = Quadratic(), []
    optimizer = problem.optimizer(iterations=2)

    def slope(direction):
        seen.append(direction[problem.w].clone())
        return (lambda length: (1.0, 1.0)) if len(seen) == 2 else problem.slope(direction)

    optimizer.sensitivity = slope
    optimizer.step(problem.closure)
    assert len(seen) == 3
    assert torch.equal(seen[2], -problem.w.grad)


def test_a_zero_gradient_moves_nothing():
    problem = Quadratic()
    problem.y.zero_()
    for formula in FORMULAS:
        problem.optimizer(formula=formula, iterations=3).step(problem.closure)
    assert torch.equal(problem.w, torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize(
    ("phi", "root"),
    [
        (lambda t: (2 * t - 3, 2.0), 1.5),
        (lambda t: (t**3 - 8, 3 * t * t), 2.0),
        (lambda t: (math.atan(t - 50), 1 / (1 + (t - 50) ** 2)), 50.0),  # Newton diverges from 0
        (lambda t: (1.0, 1.0), 0.0),
        (lambda t: (math.nan, 1.0), 0.0),
    ],
    ids=["line", "cubic", "arctangent", "rising", "undefined"],
)
def test_the_root_of_an_increasing_function(phi, root):
    assert increasing_root(phi) == pytest.approx(root, abs=1e-8)


def test_without_a_root_the_length_stays_finite():
    found = increasing_root(lambda t: (-math.exp(-t), math.exp(-t)))
    assert math.exp(-found) == pytest.approx(1e-10, rel=2)


def test_the_state_consists_of_the_groups():
    problem = Quadratic()
    optimizer = problem.optimizer(lr=0.3)
    optimizer.step(problem.closure)
    state = optimizer.state_dict()
    assert state["state"] == {}
    other = Quadratic().optimizer()
    other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"lr must be finite and > 0, got 0\.0\. Pass --model\.optimizer\.lr 1\.0"),
        ({"formula": "cg"}, "formula must be fr, pr.*got 'cg'"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"sobolev": -1.0}, "sobolev must be finite and > 0, or null, got -1"),
    ],
)
def test_values_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SobolevNCG([nn.Parameter(torch.ones(1))], **options)


def test_steps_without_closure_or_cost_are_refused():
    problem = Quadratic()
    optimizer = problem.optimizer()
    with pytest.raises(ValueError, match=r"closure must be given .*--trainer\.precision"):
        optimizer.step()
    optimizer.sensitivity = None
    with pytest.raises(ValueError, match=r"sensitivity must be set .*--model\.objective TerminalCost"):
        optimizer.step(problem.closure)
