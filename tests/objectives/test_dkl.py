"""IKL: its squares in closed form, the gradients of the divergence, and the statistics of the classes."""

import torch
from helpers.fakes import images, steady_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.functional.losses import cross_entropy, kl_divergence
from lightning_paf.objectives import IKL
from lightning_paf.objectives.dkl import weighted_squares

ATTACK = PGD(0.1, step_size=0.05, steps=2, start="gaussian")
X, Y = images()


def bound(**options):
    model, objective = steady_classifier(), IKL(**options)
    objective.bind(model)
    return objective, model


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), classes=st.integers(2, 7))
def test_the_squares_are_those_of_all_pairs(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    z, other = torch.randn(2, 3, classes, generator=generator, dtype=torch.float64)
    w = torch.rand(3, classes, generator=generator, dtype=torch.float64)
    pairs = (z[:, :, None] - z[:, None]) - (other[:, :, None] - other[:, None])
    expected = 0.25 * (w[:, :, None] * w[:, None] * pairs**2).sum((1, 2))
    torch.testing.assert_close(weighted_squares(z, other, w), expected)


def test_decoupled_it_has_the_gradients_of_the_divergence():
    """Cui et al., theorem 1: with constant weights, and the other logits constant in the squares."""
    z, other = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, other = z.requires_grad_(), other.requires_grad_()
    p = z.softmax(1)
    expected = torch.autograd.grad(kl_divergence(other, p).sum(), [z, other])
    decoupled = weighted_squares(z, other.detach(), p.detach()) + cross_entropy(other, p.detach())
    torch.testing.assert_close(torch.autograd.grad(decoupled.sum(), [z, other]), expected)


def test_with_weights_of_0_it_is_cross_entropy():
    objective, model = bound(alpha=0, beta=0)
    torch.testing.assert_close(objective(model, X, Y, ATTACK).loss, F.cross_entropy(model(X), Y))


def test_the_next_epoch_uses_the_mean_predictions_of_this_one():
    objective, model = bound()
    assert torch.equal(objective.prior, torch.full((10, 10), 0.1))
    objective(model, X, Y, ATTACK)
    objective.on_epoch_start(0, 0.0)  # called again when training is resumed
    assert torch.equal(objective.prior, torch.full((10, 10), 0.1))
    objective.on_epoch_start(1, 0.1)
    softened = (model(X) / 4).softmax(1)
    for label in range(10):
        expected = softened[label == Y].mean(0) if (label == Y).any() else torch.full((10,), 0.1)
        torch.testing.assert_close(objective.prior[label], expected)
    assert objective.sums.sum() == 0
    torch.testing.assert_close(objective.prior.sum(1), torch.ones(10))


def test_the_statistics_of_the_classes_are_in_the_state():
    objective, model = bound()
    objective(model, X, Y, ATTACK)
    objective.on_epoch_start(1, 0.1)
    other, _ = bound()
    other.load_state_dict(objective.state_dict())
    assert other.epoch == 1
    other.on_epoch_start(1, 0.1)
    assert torch.equal(other.prior, objective.prior)


def test_in_bfloat16_statistics_and_squares_are_exact():
    objective, _ = bound()
    torch.manual_seed(0)
    logits, others, y = 3 * torch.randn(256, 10), torch.randn(256, 10), torch.arange(256) % 10
    target = F.one_hot(y, 10).float()
    objective.prior.copy_(torch.rand(10, 10).softmax(1))
    expected = objective.squares(logits, others, target)
    objective._accumulate(target, logits)
    sums = objective.sums.clone()
    objective.sums.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(objective.squares(logits, others, target), expected)
        objective._accumulate(target, logits)
    torch.testing.assert_close(objective.sums, sums)
