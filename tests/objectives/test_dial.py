"""DIAL: its limits, the direction of its gradients, and its domain head."""

import copy
import math

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.objectives import DIALCE, DIALKL, TRADES, Natural

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="gaussian")
X, Y = images()
both = pytest.mark.parametrize("cls", [DIALKL, DIALCE])


def prepared(cls, progress=1.0, **options):
    """An objective with its head, in an epoch of this progress, and the model."""
    model, objective = tiny_classifier().train(), cls(**options)
    objective.bind(model)
    objective.on_epoch_start(1, progress)
    return objective, model


def stepped(objective, model):
    torch.manual_seed(5)
    result = objective(model, X, Y, ATTACK)
    result.loss.backward()
    return result.loss.detach(), [p.grad.clone() for p in model.parameters()]


def head_trained(objective, loss, steps, lr):
    """Loss of the head after each step of its training."""
    optimizer, losses = torch.optim.Adam(objective.parameters(), lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        losses.append(loss().item())
    return losses


def test_without_the_head_dial_kl_is_trades():
    loss, gradients = stepped(*prepared(DIALKL, beta=6, domain_weight=0))
    expected, theirs = stepped(TRADES(6), tiny_classifier().train())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, theirs)


def test_without_the_head_dial_ce_is_clean_plus_beta_adversarial():
    loss, gradients = stepped(*prepared(DIALCE, beta=3, domain_weight=0))
    model = tiny_classifier().train()
    torch.manual_seed(5)
    x_adv = ATTACK(model, X, Y)
    expected = F.cross_entropy(model(X), Y) + 3 * F.cross_entropy(model(x_adv), Y)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients, [p.grad for p in model.parameters()])


def test_beta_0_without_the_head_is_clean_training():
    loss, _ = stepped(*prepared(DIALCE, beta=0, domain_weight=0))
    torch.testing.assert_close(loss, Natural()(tiny_classifier().train(), X, Y, ATTACK).loss.detach())


@both
def test_the_loss_is_the_sum_of_its_logged_terms(cls):
    objective, model = prepared(cls, beta=2, domain_weight=0.5)
    result = objective(model, X, Y, ATTACK)
    logs = result.logs
    expected = logs["natural_loss"] + 2 * logs["adversarial_loss"] + 0.5 * logs["domain_loss"]
    torch.testing.assert_close(result.loss.detach(), expected)


@pytest.mark.parametrize("progress", [0.0, 0.3])
def test_the_head_gets_its_gradient_and_the_network_the_reversed_one(progress):
    objective, model = prepared(DIALKL, progress, hidden=[], batch_norm=False)
    features = model.outputs(X).features.detach()
    clean, adversarial = (part.requires_grad_() for part in (features.clone(), features.clone() + 0.1))
    loss = objective.domain_loss(clean, adversarial)
    leaves = [clean, adversarial, *objective.domain.parameters()]
    reversed_ = torch.autograd.grad(loss, leaves)
    labels = torch.arange(2).repeat_interleave(len(X))
    plain = 2 * F.cross_entropy(objective.domain(torch.cat([clean, adversarial])), labels)
    torch.testing.assert_close(loss, plain)
    factor = -float(objective.reversal)
    for k, (mine, gradient) in enumerate(zip(reversed_, torch.autograd.grad(plain, leaves), strict=True)):
        torch.testing.assert_close(mine, (factor if k < 2 else 1) * gradient)
        assert k < 2 or gradient.abs().sum() > 0
    assert factor == 0 if progress == 0 else factor < 0


def test_without_an_attack_the_head_stays_at_chance():
    objective, model = prepared(DIALKL)
    features = model.outputs(X).features.detach()
    losses = head_trained(objective, lambda: objective.domain_loss(features, features), 60, 0.05)
    assert min(losses) >= 2 * math.log(2) - 1e-5
    assert losses[-1] == pytest.approx(2 * math.log(2), abs=0.02)


def test_on_a_fixed_network_the_head_learns_to_separate_the_domains():
    objective, model = prepared(DIALCE, hidden=[])
    model.eval()
    features = [model.outputs(z).features.detach() for z in (X, (X + 0.4).clamp(0, 1))]
    losses = head_trained(objective, lambda: objective.domain_loss(*features), 100, 0.1)
    assert losses[-1] < 2 * math.log(2) - 0.1


@both
def test_the_head_is_no_part_of_the_classifier(cls):
    objective, model = prepared(cls)
    model.eval()
    before = model(X)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(1)
    assert torch.equal(model(X), before)
    assert not any("domain" in name for name, _ in model.named_parameters())


def test_the_published_heads():
    def layers(**options):
        objective, _ = prepared(DIALKL, **options)
        return [type(layer).__name__ for layer in objective.domain], [p.shape[0] for p in objective.domain.parameters()]

    assert layers() == (["Linear", "BatchNorm1d", "ReLU", "Linear"], [100, 100, 100, 100, 2, 2])
    deep = (["Linear", "ReLU", "Linear", "ReLU", "Linear"], [256, 256, 256, 256, 2, 2])
    assert layers(hidden=[256, 256], batch_norm=False) == deep
    assert layers(hidden=[]) == (["Linear"], [2, 2])


def test_a_training_resumed_within_an_epoch_keeps_its_factor():
    objective, _ = prepared(DIALKL, 0.2)
    other, _ = prepared(DIALKL, 0.9)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    other.on_epoch_start(1, 0.25)
    assert torch.equal(other.reversal, objective.reversal)
    other.on_epoch_start(2, 0.4)
    assert other.reversal > objective.reversal
