"""DIAL: its limits, the direction of its gradients, and what is evaluated."""

import copy
import math

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from torch.nn import functional as F

from lightning_paf.attacks import PGD, Attack
from lightning_paf.objectives import AWP, DIALCE, DIALKL, TRADES, Natural

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="gaussian")
X, Y = images()
both = pytest.mark.parametrize("cls", [DIALKL, DIALCE])


class Nothing(Attack):
    def perturb(self, forward, x, y, loss):
        return x


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


def test_without_the_head_dial_kl_is_trades():
    loss, gradients = stepped(*prepared(DIALKL, beta=6, domain_weight=0))
    expected, theirs = stepped(TRADES(6), tiny_classifier().train())
    torch.testing.assert_close(loss, expected)
    for mine, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_without_the_head_dial_ce_is_clean_plus_beta_adversarial():
    loss, gradients = stepped(*prepared(DIALCE, beta=3, domain_weight=0))
    model = tiny_classifier().train()
    torch.manual_seed(5)
    x_adv = ATTACK(model, X, Y)
    expected = F.cross_entropy(model(X), Y) + 3 * F.cross_entropy(model(x_adv), Y)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for mine, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_beta_0_and_no_head_is_clean_training():
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
    wanted = [clean, adversarial, *objective.domain.parameters()]
    reversed_ = torch.autograd.grad(loss, wanted)
    labels = torch.arange(2).repeat_interleave(len(X))
    plain = 2 * F.cross_entropy(objective.domain(torch.cat([clean, adversarial])), labels)
    torch.testing.assert_close(loss, plain)
    factor = -float(objective.reversal)
    for k, (mine, gradient) in enumerate(zip(reversed_, torch.autograd.grad(plain, wanted), strict=True)):
        torch.testing.assert_close(mine, (factor if k < 2 else 1) * gradient)
        assert k < 2 or gradient.abs().sum() > 0
    assert factor == 0 if progress == 0 else factor < 0


def test_a_step_of_the_network_on_the_heads_loss_alone_raises_it():
    objective, model = prepared(DIALKL)
    x_adv = ATTACK(model, X, Y)

    def loss():
        return objective.domain_loss(model.outputs(X).features, model.outputs(x_adv).features)

    before = loss()
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:  # the label head has no part in it
                parameter -= 1e-3 * parameter.grad
    assert loss() > before


def test_without_an_attack_the_head_cannot_do_better_than_chance():
    objective, model = prepared(DIALKL)
    optimizer = torch.optim.Adam(objective.parameters(), 0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(model, X, Y, Nothing(0.1)).loss
        loss.backward()
        optimizer.step()
        losses.append(objective(model, X, Y, Nothing(0.1)).logs["domain_loss"].item())
    assert min(losses) >= 2 * math.log(2) - 1e-5
    assert losses[-1] == pytest.approx(2 * math.log(2), abs=0.02)


@both
def test_a_clean_classifier_is_what_is_evaluated(cls):
    objective, model = prepared(cls)
    model.eval()
    before = model(X)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(1)
    assert torch.equal(model(X), before)
    assert not any("domain" in name for name, _ in model.named_parameters())


def test_the_published_heads():
    model = tiny_classifier()

    def layers(**options):
        objective = DIALKL(**options)
        objective.bind(model)
        return [type(layer).__name__ for layer in objective.domain], [p.shape[0] for p in objective.domain.parameters()]

    assert layers() == (["Linear", "BatchNorm1d", "ReLU", "Linear"], [100, 100, 100, 100, 2, 2])
    deep = (["Linear", "ReLU", "Linear", "ReLU", "Linear"], [256, 256, 256, 256, 2, 2])
    assert layers(hidden=[256, 256], batch_norm=False) == deep
    assert layers(hidden=[]) == (["Linear"], [2, 2])


def test_a_training_that_goes_on_within_an_epoch_keeps_its_factor():
    objective, _ = prepared(DIALKL, 0.2)
    other, _ = prepared(DIALKL, 0.9)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    other.on_epoch_start(1, 0.25)
    assert torch.equal(other.reversal, objective.reversal)
    other.on_epoch_start(2, 0.4)
    assert other.reversal > objective.reversal


@both
def test_around_it_adversarial_weight_perturbation(cls):
    objective, model = prepared(lambda: AWP(cls(), gamma=0.05))
    before = {name: p.detach().clone() for name, p in [*model.named_parameters(), *objective.named_parameters()]}
    result = objective(model, X, Y, ATTACK)
    moved = [n for n, p in objective.named_parameters() if not torch.equal(p, before[n])]
    assert moved == [n for n in before if n.startswith("objective.domain") and before[n].ndim > 1]
    result.loss.backward()
    objective.after_backward(model)
    parameters = dict([*model.named_parameters(), *objective.named_parameters()])
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters.values())


def test_the_domain_is_learned_while_the_network_is_fixed():
    """The head is no decoration: on a fixed network it tells strong attacks from clean images."""
    objective, model = prepared(DIALCE, hidden=[])
    model.eval()
    x_adv = (X + 0.4).clamp(0, 1)
    features = [model.outputs(images_).features.detach() for images_ in (X, x_adv)]
    optimizer = torch.optim.Adam(objective.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = objective.domain_loss(*features)
        loss.backward()
        optimizer.step()
    assert loss < 2 * math.log(2) - 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1}, r"beta.*[= ]-1"),
        ({"domain_weight": -1}, r"domain_weight.*[= ]-1"),
        ({"hidden": [0]}, r"hidden.*[= ]\[0\]"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DIALKL(**options)
