"""Jacobian norm and selective input gradient on functions with a known answer."""

import pytest
import torch
from helpers.fakes import images, spec, tiny_classifier
from torch import nn
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.functional.saliency import most_salient, perturbation_saliency
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives import JacobianNorm, Natural, SelectiveInputGradient
from lightning_paf.objectives.jsigr import outside, squared_norm

ATTACK = PGD(0.1, step_size=0.05, steps=2)
X, Y = images()


def linear() -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), spec(), normalize=False)


def gradients(objective):
    """Gradients of one step of a new network."""
    model = tiny_classifier().train()
    torch.manual_seed(3)
    objective(model, X, Y, ATTACK).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


# The Jacobian


def test_the_estimate_is_unbiased():
    model, draws = linear(), 4000
    x = X[:1].requires_grad_()
    directions = JacobianNorm(projections=draws).directions(logits := model(x))
    torch.testing.assert_close(directions.norm(dim=2), torch.ones(draws, 1))
    # The squared length of the product with each direction, times the number of classes.
    found = 10 * (directions[:, 0] @ model.head.weight.detach()).square().sum(1)
    error = (found.mean() - model.head.weight.detach().norm() ** 2).abs()
    assert error < 3 * found.std() / draws**0.5
    torch.testing.assert_close(squared_norm(logits, x, directions[:20]).detach(), found[:20].mean()[None])


def test_the_exact_norm_is_that_of_the_jacobian():
    model = tiny_classifier().eval()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), X)  # (K, N, C, H, W)
    expected = jacobian.square().sum((0, 2, 3, 4)).mean()
    torch.testing.assert_close(JacobianNorm(projections=None).term(model, X, Y, ATTACK).detach(), expected)


# The selective gradient


def test_masking_nothing_or_all():
    """A quantile of 1 is the input-gradient penalty of Ross and Doshi-Velez on log p_y, one of 0 is nothing."""
    model = tiny_classifier().eval()
    leaf = X.clone().requires_grad_()
    p = model(leaf).log_softmax(1)[torch.arange(len(Y)), Y]
    (gradient,) = torch.autograd.grad(p.sum(), leaf)
    full = gradient.flatten(1).square().sum(1).mean()
    torch.testing.assert_close(SelectiveInputGradient(quantile=1).term(model, X, Y, ATTACK).detach(), full)
    assert SelectiveInputGradient(quantile=0).term(model, X, Y, ATTACK) == 0
    assert 0 < SelectiveInputGradient(quantile=0.5).term(model, X, Y, ATTACK) < full


def pixels(*seen: tuple[int, int, float]) -> Classifier:
    """A linear classifier of two classes that uses only the pixels (row, column) with these weights."""
    fc = nn.Linear(64, 2, bias=False)
    nn.init.zeros_(fc.weight)
    with torch.no_grad():
        for row, column, weight in seen:
            fc.weight[0, 8 * row + column] = weight
    return Classifier(nn.Sequential(nn.Flatten(), fc), spec(2, 1), normalize=False).eval()


def test_only_gradients_outside_the_mask_count():
    x, y = images(4, num_classes=2, channels=1)
    assert SelectiveInputGradient().term(pixels((2, 2, 20.0)), x, y, ATTACK) == 0
    both = pixels((2, 2, 20.0), (7, 7, 0.01))
    with frozen(both):
        kept = most_salient(perturbation_saliency(both, x), 0.3)
    assert kept[:, 2, 2].all()
    assert not kept[:, 7, 7].any()
    wrong = 1 - both(x).softmax(1)[torch.arange(4), y]
    expected = (0.01 * wrong).square().mean()
    torch.testing.assert_close(SelectiveInputGradient().term(both, x, y, ATTACK), expected)


def test_matching_is_zero_if_gradient_and_saliency_agree():
    """Both are zero outside one pixel if the window is so narrow that it blurs nothing else."""
    x, y = images(4, num_classes=2, channels=1)
    match = SelectiveInputGradient(mode="match", window=1e-3)
    assert match.term(pixels((2, 2, 5.0)), x, y, ATTACK).item() == pytest.approx(0, abs=1e-6)
    assert 1e-4 < match.term(pixels((2, 2, 5.0), (5, 5, 5.0)), x, y, ATTACK) < 2
    assert match.term(pixels(), x, y, ATTACK) == 0


def test_no_gradient_flows_through_the_saliency():
    model = tiny_classifier().eval()
    SelectiveInputGradient().term(model, X, Y, ATTACK).backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with frozen(model):
        kept = most_salient(perturbation_saliency(model, X), 1 - 0.7)
    leaf = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), Y, reduction="sum"), leaf, create_graph=True)
    outside(gradient, kept).backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert expected
    torch.testing.assert_close(found, expected)


def test_the_term_of_some_examples_is_that_of_the_first_ones():
    model = tiny_classifier().eval()
    some = SelectiveInputGradient(examples=3).term(model, X, Y, ATTACK)
    torch.testing.assert_close(some, SelectiveInputGradient().term(model, X[:3], Y[:3], ATTACK))


# Both


def test_with_a_weight_of_0_only_the_other_term_remains():
    plain, jacobian = gradients(Natural()), gradients(SelectiveInputGradient(JacobianNorm(), weight=0))
    assert all(map(torch.equal, gradients(SelectiveInputGradient(JacobianNorm(weight=0), weight=0)), plain))
    assert all(map(torch.equal, jacobian, gradients(JacobianNorm())))
    assert not all(map(torch.equal, jacobian, plain))


@pytest.mark.parametrize("cls", [JacobianNorm, SelectiveInputGradient])
def test_the_extra_pass_updates_no_statistics(cls):
    model, plain = tiny_classifier().train(), tiny_classifier().train()
    cls()(model, X, Y, ATTACK)
    Natural()(plain, X, Y, ATTACK)
    for mine, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, other)
