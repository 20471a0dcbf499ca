"""Closed forms of the penalty, its effect alone, and its choice of layers."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.fakes import images, steady_classifier, tiny_classifier
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.analysis.min_max import min_max_profile
from lightning_paf.attacks import FGSM
from lightning_paf.objectives import CostSensitive, L1MinusL2, Natural
from lightning_paf.objectives.l1_minus_l2 import l1_minus_l2

X, Y = images()
numbers = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12)


@given(numbers, st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_it_is_not_negative_and_scales(values, factor):
    w = torch.tensor(values, dtype=torch.float64)
    penalty = l1_minus_l2(w)
    assert penalty >= -1e-12
    torch.testing.assert_close(l1_minus_l2(factor * w), abs(factor) * penalty)


@given(st.integers(1, 9), st.floats(-4, 4).filter(lambda v: abs(v) > 1e-3))
@settings(max_examples=10, deadline=None)
def test_constants_have_their_closed_form_and_single_weights_cost_nothing(n, v):
    assert l1_minus_l2(torch.full((n,), v)).item() == pytest.approx((n - math.sqrt(n)) * abs(v), rel=1e-4, abs=1e-4)
    single = torch.zeros(n)
    single[-1] = v
    assert l1_minus_l2(single).item() == pytest.approx(0, abs=1e-6)


def test_alone_it_makes_weights_more_unequal_at_every_step():
    torch.manual_seed(0)
    w = torch.randn(50, requires_grad=True)
    ratios = [min_max_profile(w).ratio]
    for _ in range(30):
        (gradient,) = torch.autograd.grad(l1_minus_l2(w), w)
        w = (w - 0.02 * gradient).detach().requires_grad_()
        ratios.append(min_max_profile(w).ratio)
    assert all(later < earlier for earlier, later in pairwise(ratios))


def test_it_is_added_for_the_first_or_for_the_named_layers():
    model = steady_classifier()

    def added(**options):
        objective = L1MinusL2(Natural(), **options)
        objective.bind(model)
        return (objective(model, X, Y, FGSM()).loss - Natural()(model, X, Y, FGSM()).loss).item()

    first, last = (l1_minus_l2(layer.weight).item() for layer in (model.net.conv, model.net.fc))
    assert added(weight=0.5) == pytest.approx(0.5 * first, rel=1e-4)
    assert added(layers=["fc"]) == pytest.approx(last, rel=1e-4)
    assert added(layers=2) == pytest.approx(first + last, rel=1e-4)
    assert added(layers=["conv", "fc"]) == pytest.approx(first + last, rel=1e-4)
    assert added(weight=0) == 0


def test_it_changes_no_attack():
    model = tiny_classifier().eval()

    def gradient(objective):
        objective.bind(model)
        pixels = X.clone().requires_grad_()
        return torch.autograd.grad(objective(model, pixels, Y, FGSM()).loss, pixels)[0]

    plain = gradient(CostSensitive())
    assert plain.abs().max() > 0
    assert torch.equal(plain, gradient(L1MinusL2(CostSensitive(), weight=5.0)))


@pytest.mark.parametrize("layers", [["conv", "conv9", "bn"], 3])
def test_unknown_layers_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers must be at most 2, or names among conv, fc, got .*Pass --model"):
        L1MinusL2(layers=layers).bind(tiny_classifier())
