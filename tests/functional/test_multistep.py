"""Three-step schemes: coefficients, roots, order and growth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_paf.functional.multistep import OPTIMAL, is_consistent, is_zero_stable, root_moduli, three_step_family

ONES = (1.0, 1.0, 1.0, 1.0)


def iterate(coefficients, field, states, steps):
    """States of the scheme; `states` are x_2, x_1, x_0."""
    a0, a1, a2, b0 = coefficients
    found = list(reversed(states))
    for _ in range(steps):
        found.append(a0 * found[-1] + a1 * found[-2] + a2 * found[-3] + b0 * field(found[-1]))
    return np.array(found)


@given(st.floats(-50, 50).filter(lambda p: abs(p) > 0.01))
def test_the_family_is_consistent_of_order_two(p):
    a0, a1, a2, b0 = three_step_family(p)
    scale = 1 + 1 / abs(p)
    assert a0 + a1 + a2 == pytest.approx(1, abs=1e-9 * scale)
    assert -a1 - 2 * a2 + b0 == pytest.approx(1, abs=1e-9 * scale)
    assert a1 / 2 + 2 * a2 == pytest.approx(0.5, abs=1e-9 * scale)


@given(st.floats(-50, 50).filter(lambda p: abs(p) > 0.01))
def test_extraneous_roots_are_those_of_the_quadratic_factor(p):
    expected = np.abs(np.roots([1, (p - 3) / (4 * p), (p + 1) / (4 * p)]))
    assert root_moduli(three_step_family(p)) == pytest.approx(np.sort(expected)[::-1], rel=1e-3, abs=1e-3)


def test_published_coefficients_and_roots():
    assert three_step_family(OPTIMAL) == pytest.approx((1 / 3, 5 / 9, 1 / 9, 16 / 9))
    assert three_step_family(1.0) == (1.5, -1, 0.5, 1)
    assert three_step_family(-0.5) == (-0.75, 2, -0.25, 2.5)
    assert three_step_family(1e12) == pytest.approx((0.75, 0, 0.25, 1.5))
    largest = {p: root_moduli(three_step_family(p))[0] for p in (OPTIMAL, 1.0, 3.0, 1e12, -0.5)}
    expected = {OPTIMAL: 1 / 3, 1.0: math.sqrt(0.5), 3.0: math.sqrt(1 / 3), 1e12: 0.5, -0.5: 1.8828}
    assert largest == pytest.approx(expected, rel=1e-4)
    assert root_moduli(ONES)[0] == pytest.approx(1.8393, rel=1e-4)
    assert root_moduli((1, 0, 0, 1)).tolist() == [0, 0]


def test_the_optimum_has_the_smallest_root():
    grid = [p for p in np.linspace(-10, 10, 2001) if abs(p) > 1e-3]
    best = min(grid, key=lambda p: root_moduli(three_step_family(p))[0])
    assert best == pytest.approx(OPTIMAL, abs=0.011)


@pytest.mark.parametrize("p", [-50, -3, OPTIMAL, -1.01, -1, -0.99, -0.5, -0.01, 0.01, 0.3, 1 / 3, 0.34, 0.5, 1, 3, 50])
def test_zero_stable_region(p):
    assert is_zero_stable(three_step_family(p)) == (p <= -1 or p > 1 / 3 + 1e-9)


def test_other_schemes():
    assert is_zero_stable((1, 0, 0, 1))
    assert is_zero_stable((1.0, 1.0))  # forward Euler
    assert is_zero_stable((0, 1, 2))  # leapfrog: roots 1 and -1
    assert not is_zero_stable((2, -1, 0))  # a double root 1
    assert not is_consistent(ONES)
    assert not is_zero_stable(ONES)


@pytest.mark.parametrize("p", [OPTIMAL, 1.0, 3.0])
def test_the_error_falls_with_the_square_of_the_step(p):
    errors = []
    for steps in (50, 100):
        h = 1 / steps
        found = iterate(three_step_family(p), lambda x, h=h: -h * x, [math.exp(-h * k) for k in (2, 1, 0)], steps - 2)
        errors.append(abs(found[-1] - math.exp(-1)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.06)


def test_inconsistent_coefficients_diverge():
    found = [iterate(ONES, lambda x, h=h: -h * x, [1, 1, 1], int(1 / h))[-1] for h in (0.1, 0.05, 0.025)]
    assert found[0] < 1e-3 * found[1] < 1e-6 * found[2] or found[2] > 1e6


@pytest.mark.parametrize("p", [OPTIMAL, 1.0, 3.0])
def test_without_field_a_combination_of_states_is_conserved(p):
    a0, a1, a2, b0 = three_step_family(p)
    found = iterate((a0, a1, a2, b0), lambda x: 0.0, [0.3, -1.0, 2.0], 60)
    conserved = found[2:] + (1 - a0) * found[1:-1] + a2 * found[:-2]
    assert conserved == pytest.approx(np.full(61, conserved[0]))
    assert found[-1] == pytest.approx(conserved[0] / b0)
    if p == OPTIMAL:
        assert found[-1] == pytest.approx((0.3 - 2 / 3 + 2 / 9) * 9 / 16)


def test_a_perturbation_stays_bounded_if_and_only_if_zero_stable():
    for p in (OPTIMAL, 1.0, 3.0, -1.0):
        assert np.abs(iterate(three_step_family(p), lambda x: 0.0, [0.0, 0.0, 1.0], 100)).max() < 2
    grown = np.abs(iterate(three_step_family(-0.5), lambda x: 0.0, [0.0, 0.0, 1.0], 100))
    assert grown[-1] / grown[-2] == pytest.approx(1.8828, rel=1e-4)
    assert grown[-1] > 1e20


def test_a_tensor_gives_coefficients_with_a_gradient():
    p = torch.tensor(1.0, requires_grad=True)
    coefficients = three_step_family(p)
    assert [float(c.detach()) for c in coefficients] == [1.5, -1, 0.5, 1]
    sum(coefficients).backward()
    assert p.grad == pytest.approx(0.5)  # a0 + a1 + a2 = 1, and b0 has 1 / (2 p^2)
