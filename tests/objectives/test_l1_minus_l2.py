"""Closed forms of the penalty; what it does alone; which layers it meets."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.analysis.min_max import min_max_profile
from lightning_paf.attacks import FGSM
from lightning_paf.objectives import CostSensitive, L1MinusL2, Natural
from lightning_paf.objectives.l1_minus_l2 import l1_minus_l2

numbers = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12)


@given(numbers, st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_it_is_not_negative_and_scales(values, factor):
    w = torch.tensor(values, dtype=torch.float64)
    penalty = l1_minus_l2(w)
    assert penalty >= -1e-12
    torch.testing.assert_close(l1_minus_l2(factor * w), abs(factor) * penalty)


@given(st.integers(1, 9), st.floats(-4, 4).filter(lambda v: abs(v) > 1e-3))
@settings(max_examples=20, deadline=None)
def test_constants_have_their_closed_form_and_single_weights_cost_nothing(n, v):
    assert l1_minus_l2(torch.full((n,), v)).item() == pytest.approx((n - math.sqrt(n)) * abs(v), rel=1e-4, abs=1e-4)
    single = torch.zeros(n)
    single[-1] = v
    assert l1_minus_l2(single).item() == pytest.approx(0, abs=1e-6)


def test_two_weights_cost_something():
    assert l1_minus_l2(torch.tensor([3.0, 4.0])).item() == pytest.approx(2)


def test_its_gradient():
    w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(l1_minus_l2(w), w)
    torch.testing.assert_close(gradient, (w.sign() - w / w.norm()).detach())


def test_alone_it_makes_weights_more_unequal_at_every_step():
    torch.manual_seed(0)
    w = torch.randn(50, requires_grad=True)
    ratios = [min_max_profile(w).ratio]
    for _ in range(30):
        (gradient,) = torch.autograd.grad(l1_minus_l2(w), w)
        w = (w - 0.02 * gradient).detach().requires_grad_()
        ratios.append(min_max_profile(w).ratio)
    assert all(later < earlier for earlier, later in pairwise(ratios))


def added(model, **options):
    x, y = images()
    objective = L1MinusL2(Natural(), **options)
    objective.bind(model)
    return (objective(model, x, y, FGSM()).loss - Natural()(model, x, y, FGSM()).loss).item()


def test_it_is_added_for_the_first_or_for_the_named_layers():
    model = tiny_classifier().train()
    model.net.bn.momentum = 0.0
    first, last = (l1_minus_l2(layer.weight).item() for layer in (model.net.conv, model.net.fc))
    assert added(model, weight=0.5) == pytest.approx(0.5 * first, rel=1e-4)
    assert added(model, layers=["fc"]) == pytest.approx(last, rel=1e-4)
    assert added(model, layers=2) == pytest.approx(first + last, rel=1e-4)
    assert added(model, layers=["conv", "fc"]) == pytest.approx(first + last, rel=1e-4)
    assert added(model, weight=0) == 0


def test_it_changes_no_attack():
    model, (x, y) = tiny_classifier().eval(), images()
    plain, penalised = CostSensitive(), L1MinusL2(CostSensitive(), weight=5.0)
    for objective in (plain, penalised):
        objective.bind(model)

    def gradient(objective):
        pixels = x.clone().requires_grad_()
        return torch.autograd.grad(objective(model, pixels, y, FGSM()).loss, pixels)[0]

    assert gradient(plain).abs().max() > 0
    assert torch.equal(gradient(plain), gradient(penalised))


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match=r"conv9, bn is asked for, and it has conv, fc"):
        L1MinusL2(layers=["conv", "conv9", "bn"]).bind(tiny_classifier())
    with pytest.raises(ValueError, match=r"3 of them are asked for, and it has conv, fc"):
        L1MinusL2(layers=3).bind(tiny_classifier())
    for layers in ([], 0, -1, "conv", True):
        with pytest.raises(ValueError, match="layers must be"):
            L1MinusL2(layers=layers)
    with pytest.raises(ValueError, match="weight=-1"):
        L1MinusL2(weight=-1)
