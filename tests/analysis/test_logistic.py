"""Attacks on a linear rule, whose optimum is known in closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_paf.analysis.logistic import PIXELS, LinearRule, draw_logistic, fit_logistic, logistic_curve
from lightning_paf.attacks import FGSM, PGD


def problem(seed=0, n=40):
    """A rule with some weights of 0, and images of both classes, four of them misclassified."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    weight[weight.abs() < 0.5] = 0
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    rule = LinearRule(weight, 0.0)
    scores = rule.margins(x, torch.ones(n))
    rule = LinearRule(weight, -float(scores.median()) - 1e-3)
    y = (scores + rule.bias > 0).long()
    y[:4] = 1 - y[:4]  # mistakes
    return rule, x, y


def signs(y):
    return (2.0 * y.double() - 1)[:, None, None, None]


def test_classifier_has_the_logistic_loss_and_its_gradient():
    rule, x, y = problem()
    logits, margins = rule.classifier()(x.requires_grad_()), rule.margins(x, y)
    assert torch.equal(logits.argmax(1) == y, margins > 0)
    losses = F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(losses, F.softplus(-margins))
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    expected = -signs(y) * rule.weight / (1 + margins.exp())[:, None, None, None]
    torch.testing.assert_close(gradient, expected.detach())


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 100), st.floats(0.01, 0.9), st.integers(1, 12), st.floats(1.0, 3.0), st.sampled_from([None, PIXELS])
)
def test_fgsm_and_pgd_reach_the_optimum(seed, eps, steps, distance, bounds):
    rule, x, y = problem(seed, n=6)
    pgd = PGD(eps, step_size=min(1.0, 1.0001 * distance * eps / steps), steps=steps, start="none", bounds=bounds)
    expected = x - eps * signs(y) * rule.weight.sign()
    if bounds is not None:
        expected = expected.clamp(0, 1)
    else:
        decrease = rule.margins(x, y) - rule.margins(expected, y)
        torch.testing.assert_close(decrease, (eps * rule.weight.abs().sum()).expand_as(decrease))
    results = (attack(rule.classifier(), x, y) for attack in (pgd, FGSM(eps, bounds=bounds)))
    for found in (*results, rule.worst(x, y, eps, bounds)):
        torch.testing.assert_close(found, expected, atol=1e-15, rtol=0)


def test_prediction_changes_at_the_distance():
    rule, x, y = problem()
    distances = rule.distances(x, y)
    assert (distances[:4] < 0).all()
    for distance, image, label in zip(distances[4:], x[4:], y[4:], strict=True):
        before, after = (rule.worst(image[None], label[None], scale * float(distance)) for scale in (0.999, 1.001))
        assert rule.margins(before, label[None]) > 0 > rule.margins(after, label[None])


@pytest.mark.parametrize("seed", [0, 1])
def test_attacks_agree_with_the_closed_form_at_every_eps(seed):
    rule, x, y = problem(seed)
    curve = logistic_curve(rule, x, y, [n / 200 for n in range(21)])
    assert all(point.agrees for point in curve)
    assert max(point.difference for point in curve) < 1e-15
    distances = rule.distances(x, y)
    assert [point.exact for point in curve] == [float((distances > point.eps).double().mean()) for point in curve]
    assert all(point.exact_in_range >= point.exact for point in curve)
    assert any(point.exact_in_range > point.exact for point in curve)
    assert curve[0].exact == 0.9
    assert curve[-1].exact < 0.1


def test_l1_penalty_selects_the_relevant_pixel():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0, 1, 2] > 0.5).long()
    rule = fit_logistic(x, y, cost=1.0)
    assert int(rule.weight.abs().flatten().argmax()) == 6
    assert (rule.weight == 0).sum() > 8
    assert (rule.margins(x, y) > 0).double().mean() > 0.9
    assert fit_logistic(x, y, cost=0.01).weight.abs().sum() < rule.weight.abs().sum()


def test_figure_shows_curves_and_a_digit():
    rule, x, y = problem()
    figure = draw_logistic(rule, logistic_curve(rule, x, y, [0, 0.05]), x, y, "title")
    curves, weights, perturbation, digit, flipped = figure.axes
    assert [line.get_label() for line in curves.lines][:1] == ["closed form"]
    arrays = [axes.images[0].get_array().data for axes in (weights, perturbation, digit, flipped)]
    assert (arrays[0] == rule.weight.numpy()).all()
    assert abs(arrays[3] - arrays[2] - arrays[1]).max() < 1e-15
    size = abs(arrays[1]).max()
    assert (abs(abs(arrays[1]) - size * (arrays[0] != 0)) < 1e-12).all()
