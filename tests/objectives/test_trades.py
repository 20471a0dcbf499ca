"""Closed forms of both forms of TRADES, and their inner maximisation."""

import copy

import pytest
import torch
from helpers.fakes import images, steady_classifier, tiny_classifier
from helpers.training import Trained, steps
from torch.nn import functional as F

from lightning_paf.attacks import PGD, Attack, L2Ascent
from lightning_paf.attacks.base import loss_and_gradient
from lightning_paf.functional.losses import kl_divergence
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives import TRADES, BinaryTRADES
from lightning_paf.objectives.trades import attack_prediction

LINF = PGD(0.1, step_size=0.025, steps=10, start="gaussian")
L2 = L2Ascent(0.5)
X, Y = images()
both = pytest.mark.parametrize("attack", [LINF, L2], ids=["linf", "l2"])


class Nothing(Attack):
    """An attack of radius zero."""

    def perturb(self, forward, x, y, loss):
        return x


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


@both
def test_with_weight_0_loss_and_gradients_are_those_of_cross_entropy(attack):
    model = steady_classifier()
    loss, expected = TRADES(0)(model, X, Y, attack).loss, F.cross_entropy(model(X), Y)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients(model, loss), gradients(model, expected), atol=1e-6, rtol=0)


def test_without_a_radius_the_divergence_is_zero():
    assert TRADES()(steady_classifier(), X, Y, Nothing()).logs["divergence"] == pytest.approx(0, abs=1e-7)


def test_adversarial_images_stay_in_the_ball_and_in_range():
    model = steady_classifier()
    x_adv, x_l2 = (attack_prediction(model, X, attack) for attack in (LINF, L2))
    assert (x_adv - X).abs().max() <= 0.1 + 1e-7
    assert (x_l2 - X).flatten(1).norm(dim=1).max() <= 0.5 * (1 + 1e-5)
    assert (x_l2 - X).flatten(1).norm(dim=1).min() > 0.25
    assert all(found.min() >= 0 and found.max() <= 1 for found in (x_adv, x_l2))


def test_the_gradient_of_the_divergence_vanishes_without_the_noise():
    model = steady_classifier()
    with frozen(model):
        p = model(X).softmax(1).detach()
        sizes = [
            loss_and_gradient(model, z, p, kl_divergence)[1].abs().max()
            for z in (X, X + 0.001 * torch.randn(X.shape, generator=torch.Generator().manual_seed(0)))
        ]
    assert sizes[0] < 1e-3 * sizes[1]


def test_the_gradient_flows_into_the_clean_prediction():
    model = steady_classifier()
    torch.manual_seed(0)
    loss = TRADES(6)(model, X, Y, LINF).loss
    torch.manual_seed(0)
    x_adv = attack_prediction(model, X, LINF)
    clean = model(X)
    detached = F.cross_entropy(clean, Y) + 6 * kl_divergence(model(x_adv), clean.softmax(1).detach()).mean()
    torch.testing.assert_close(loss, detached)
    differences = [(a - b).abs().max() for a, b in zip(gradients(model, loss), gradients(model, detached), strict=True)]
    assert max(differences) > 1e-4


@both
def test_the_attack_increases_the_divergence(attack):
    trained = Trained(tiny_classifier().train(), TRADES())
    steps(trained, 30)
    model, (x, _) = trained.model.eval(), images(64)
    with torch.no_grad():
        p = model(x).softmax(1)
        before = kl_divergence(model((x + 0.001 * torch.randn_like(x)).clamp(0, 1)), p)
        after = kl_divergence(model(attack_prediction(model, x, attack)), p)
    assert (after >= before).float().mean() >= 0.95


@pytest.mark.parametrize(("again", "passes"), [(False, 2), (True, 3)])
def test_clean_images_are_passed_again_with_recompute_clean(again, passes):
    model = tiny_classifier().train()
    loss = TRADES(recompute_clean=again)(model, X, Y, LINF).loss
    assert model.net.bn.num_batches_tracked == passes
    assert torch.isfinite(loss)


def test_the_l2_attack_uses_noise_if_the_gradient_is_zero():
    flat = torch.nn.Conv2d(3, 10, 8)
    torch.nn.init.zeros_(flat.weight)
    net = torch.nn.Sequential(flat, torch.nn.Flatten())
    x_adv = L2Ascent(0.5)(net, X, torch.zeros(8, dtype=torch.long))
    assert (x_adv - X).flatten(1).norm(dim=1).min() > 0.1


def test_the_l2_attack_clamps_before_it_projects():
    """Half of the pixels cannot rise: the others get the rest of the radius, which the other order would lose."""
    x = torch.full((1, 1, 1, 2), 0.5)
    x[..., 0] = 1.0
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    found = L2Ascent(0.2, steps=20)(net, x, torch.tensor([0]))
    assert found[0, 0, 0, 1] == pytest.approx(0.7, abs=1e-3)


def test_the_binary_form_is_the_hinge_of_the_margin_and_of_the_disagreement():
    model, y = steady_classifier(2), Y % 2
    f = (model(X)[:, 1] - model(X)[:, 0]).detach()
    expected = (1 - (2.0 * y - 1) * f).clamp_min(0).mean() + (1 - f * f / 5).clamp_min(0).mean()
    torch.testing.assert_close(BinaryTRADES()(model, X, y, Nothing()).loss.detach(), expected)


def test_a_smaller_lambda_means_more_robustness():
    z = steady_classifier(2)(X)
    sharp, mild = (BinaryTRADES(lam).disagreement(-z, z[:, 1] - z[:, 0]).mean() for lam in (1, 5))
    assert sharp > mild > 1  # scores of opposite sign cost more, the smaller lambda is


def test_the_binary_form_has_the_properties_of_all_objectives():
    model, y = steady_classifier(2), Y % 2
    results = []
    for target in (y, F.one_hot(y, 2).float()):
        torch.manual_seed(3)
        results.append(BinaryTRADES()(copy.deepcopy(model), X, target, LINF))
    torch.testing.assert_close(results[0].loss, results[1].loss)
    assert results[0].logits.shape == (8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        BinaryTRADES()(model, X, y, LINF).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_binary_form_refuses_other_numbers_of_classes():
    with pytest.raises(ValueError, match="number of classes must be 2 for BinaryTRADES, got 10"):
        BinaryTRADES().bind(tiny_classifier())
