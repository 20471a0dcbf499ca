"""Interpolated adversarial training: what mixing does, and what it does not do."""

import copy

import pytest
import torch
from helpers.fakes import TinyNet, images, spec, tiny_classifier
from torch import nn
from torch.nn import functional as F

from lightning_paf.attacks import PGD, Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.mixup import Mixture, draw_mixture
from lightning_paf.nets import PreActResNet, SmallConvNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.swap import swap_activations
from lightning_paf.objectives import IAT, interpolated
from lightning_paf.tasks.classification import RobustModule

EPS = 0.1
ATTACK = PGD(EPS, step_size=0.05, steps=3)
X, Y = images()


class Nothing(Attack):
    """Finds the images themselves."""

    def perturb(self, forward, x, y, loss):
        return x


def with_mixture(monkeypatch, mixture: Mixture) -> None:
    monkeypatch.setattr(interpolated, "draw_mixture", lambda *_: mixture)


def test_without_mixing_it_is_half_clean_half_adversarial_training():
    other, model = tiny_classifier().train(), tiny_classifier().train()
    torch.manual_seed(3)
    loss = IAT(alpha=0)(other, X, Y, ATTACK).loss
    torch.manual_seed(3)
    x_adv = ATTACK(model, X, Y)
    torch.testing.assert_close(loss, (F.cross_entropy(model(X), Y) + F.cross_entropy(model(x_adv), Y)) / 2)


def test_mixing_an_image_with_itself_changes_nothing(monkeypatch):
    model = tiny_classifier().eval()
    with_mixture(monkeypatch, Mixture(0.5, torch.arange(len(X))))
    loss, logits = IAT().mixed(model, X, Y)
    torch.testing.assert_close(loss, F.cross_entropy(model(X), Y))
    torch.testing.assert_close(logits, model(X))


def test_both_halves_are_mixtures_of_the_same_data_without_an_attack(monkeypatch):
    with_mixture(monkeypatch, Mixture(0.7, torch.randperm(len(X))))
    result = IAT()(tiny_classifier().train(), X, Y, Nothing(EPS))
    torch.testing.assert_close(result.logs["clean_loss"], result.logs["adversarial_loss"])
    torch.testing.assert_close(result.loss.detach(), result.logs["clean_loss"])


def test_the_two_terms_are_the_loss_of_the_mixed_label(monkeypatch):
    model, mixture = tiny_classifier().eval(), Mixture(0.8, torch.randperm(len(X)))
    with_mixture(monkeypatch, mixture)
    loss, logits = IAT().mixed(model, X, Y)
    torch.testing.assert_close(loss, cross_entropy(logits, mixture(F.one_hot(Y, 10).float())).mean())


def test_layer_0_mixes_images(monkeypatch):
    model, mixture = tiny_classifier().eval(), Mixture(0.6, torch.randperm(len(X)))
    with_mixture(monkeypatch, mixture)
    torch.testing.assert_close(IAT(layers=[0]).mixed(model, X, Y)[1], model(0.6 * X + 0.4 * X[mixture.partners]))


def test_behind_the_last_activation_mixing_mixes_logits(monkeypatch):
    """What follows it in this network is linear."""
    model, mixture = tiny_classifier().eval(), Mixture(0.6, torch.randperm(len(X)))
    with_mixture(monkeypatch, mixture)
    torch.testing.assert_close(IAT(layers=[1]).mixed(model, X, Y)[1], mixture(model(X)))


@pytest.mark.parametrize("build", [SmallConvNet, lambda *_: PreActResNet(width=4)])
@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4])
def test_with_a_share_of_1_mixing_is_the_identity_everywhere(build, layer, monkeypatch):
    net = build(3)
    swap_activations(net, PSSiLU)
    model = Classifier(net, spec()).train()
    plain = copy.deepcopy(model)(X)
    with_mixture(monkeypatch, Mixture(1.0, torch.randperm(len(X))))
    torch.testing.assert_close(IAT(layers=[layer]).mixed(model, X, Y)[1], plain)


def test_the_attack_works_on_images_that_are_not_mixed():
    seen = []

    class Noting(IAT):
        def mixed(self, model, x, y):
            seen.append((x, y))
            return super().mixed(model, x, y)

    Noting()(tiny_classifier().train(), X, Y, ATTACK)
    (clean, labels), (adversarial, _) = seen
    assert torch.equal(clean, X)
    assert torch.equal(labels, Y)
    assert 0 < (adversarial - X).abs().max() <= EPS + 1e-6


def test_both_halves_draw_for_themselves(monkeypatch):
    drawn = []
    monkeypatch.setattr(interpolated, "draw_mixture", lambda *args: drawn.append(draw_mixture(*args)) or drawn[-1])
    IAT()(tiny_classifier().train(), X, Y, ATTACK)
    first, second = drawn
    assert first.share != second.share
    assert not torch.equal(first.partners, second.partners)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 2.0])
def test_shares_are_those_of_the_larger_of_a_beta_pair(alpha):
    shares = torch.tensor([draw_mixture(1, alpha, torch.device("cpu")).share for _ in range(1000)])
    assert (shares >= 0.5).all()
    assert (shares <= 1).all()
    # The variance of Beta(alpha, alpha) around 1/2 is that of the larger part around 1/2, too.
    assert ((shares - 0.5) ** 2).mean().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.02)


def test_manifold_mixup_reaches_every_parameter():
    model, objective = tiny_classifier().train(), IAT(alpha=2, layers=[0, 1])
    objective.bind(model)
    for _ in range(4):
        model.zero_grad()
        objective(model, X, Y, ATTACK).loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_network_without_the_stages_is_refused():
    with pytest.raises(ValueError, match=r"needs 2 stages, but TinyNet has 1 \(activation\).*layers '\[0\]'"):
        RobustModule(TinyNet(), ATTACK, IAT(layers=[0, 2]))
    linear = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), spec())
    with pytest.raises(ValueError, match=r"has 0 \(none\)"):
        IAT(layers=[1]).bind(linear)
    IAT().bind(linear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, r"alpha.*[= ]-1"),
        ({"alpha": 1e-3}, r"alpha.*[= ]0\.001"),
        ({"layers": []}, "layers"),
        ({"layers": [-1]}, "layers"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IAT(**options)
