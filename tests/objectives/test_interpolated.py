"""Interpolated adversarial training: mixtures of images and of features, and their losses."""

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
    """Returns the images themselves."""

    def perturb(self, forward, x, y, loss):
        return x


def mixture(monkeypatch, coefficient: float, partners: torch.Tensor | None = None) -> Mixture:
    """The mixture that every draw returns."""
    fixed = Mixture(coefficient, torch.randperm(len(X)) if partners is None else partners)
    monkeypatch.setattr(interpolated, "draw_mixture", lambda *_: fixed)
    return fixed


def test_without_mixing_it_is_half_clean_half_adversarial_training():
    other, model = tiny_classifier().train(), tiny_classifier().train()
    torch.manual_seed(3)
    loss = IAT(alpha=0)(other, X, Y, ATTACK).loss
    torch.manual_seed(3)
    x_adv = ATTACK(model, X, Y)
    torch.testing.assert_close(loss, (F.cross_entropy(model(X), Y) + F.cross_entropy(model(x_adv), Y)) / 2)


def test_mixing_an_image_with_itself_changes_nothing(monkeypatch):
    model = tiny_classifier().eval()
    mixture(monkeypatch, 0.5, torch.arange(len(X)))
    loss, logits = IAT().mixed(model, X, Y)
    torch.testing.assert_close(loss, F.cross_entropy(model(X), Y))
    torch.testing.assert_close(logits, model(X))


def test_without_an_attack_both_halves_are_mixtures_of_the_same_data(monkeypatch):
    mixture(monkeypatch, 0.7)
    result = IAT()(tiny_classifier().train(), X, Y, Nothing(EPS))
    torch.testing.assert_close(result.logs["clean_loss"], result.logs["adversarial_loss"])
    torch.testing.assert_close(result.loss.detach(), result.logs["clean_loss"])


def test_the_loss_is_that_of_the_mixed_label(monkeypatch):
    model, mix = tiny_classifier().eval(), mixture(monkeypatch, 0.8)
    loss, logits = IAT().mixed(model, X, Y)
    torch.testing.assert_close(loss, cross_entropy(logits, mix(F.one_hot(Y, 10).float())).mean())


def test_layer_0_mixes_images_and_the_last_one_logits(monkeypatch):
    """After the last activation, the layers of this network are linear."""
    model, mix = tiny_classifier().eval(), mixture(monkeypatch, 0.6)
    torch.testing.assert_close(IAT(layers=[0]).mixed(model, X, Y)[1], model(0.6 * X + 0.4 * X[mix.partners]))
    torch.testing.assert_close(IAT(layers=[1]).mixed(model, X, Y)[1], mix(model(X)))


@pytest.mark.parametrize("build", [lambda: SmallConvNet(3, width=4), lambda: PreActResNet(width=2)])
def test_with_a_coefficient_of_1_mixing_is_the_identity_at_every_layer(build, monkeypatch):
    net = build()
    swap_activations(net, PSSiLU)
    model = Classifier(net, spec()).train()
    plain = copy.deepcopy(model)(X)
    mixture(monkeypatch, 1.0)
    for layer in range(5):
        torch.testing.assert_close(IAT(layers=[layer]).mixed(model, X, Y)[1], plain)


def test_the_attack_uses_unmixed_images_and_each_half_draws_its_own_mixture(monkeypatch):
    seen, drawn = [], []
    monkeypatch.setattr(interpolated, "draw_mixture", lambda *args: drawn.append(draw_mixture(*args)) or drawn[-1])

    class Recording(IAT):
        def mixed(self, model, x, y):
            seen.append((x, y))
            return super().mixed(model, x, y)

    Recording()(tiny_classifier().train(), X, Y, ATTACK)
    (clean, labels), (adversarial, _) = seen
    assert torch.equal(clean, X)
    assert torch.equal(labels, Y)
    assert 0 < (adversarial - X).abs().max() <= EPS + 1e-6
    first, second = drawn
    assert first.coefficient != second.coefficient
    assert not torch.equal(first.partners, second.partners)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 2.0])
def test_coefficients_are_the_larger_of_a_beta_pair(alpha):
    coefficients = torch.tensor([draw_mixture(1, alpha, torch.device("cpu")).coefficient for _ in range(1000)])
    assert (coefficients >= 0.5).all()
    assert (coefficients <= 1).all()
    # The variance of Beta(alpha, alpha) around 1/2 is that of the larger part around 1/2, too.
    assert ((coefficients - 0.5) ** 2).mean().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.02)


def test_manifold_mixup_gives_every_parameter_a_gradient():
    model, objective = tiny_classifier().train(), IAT(alpha=2, layers=[0, 1])
    objective.bind(model)
    for _ in range(4):
        model.zero_grad()
        objective(model, X, Y, ATTACK).loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_network_with_too_few_stages_is_refused():
    message = r"layers must be at most 1 \(TinyNet has the stages activation\), got \[0, 2\]\..*layers '\[0\]'"
    with pytest.raises(ValueError, match=message):
        RobustModule(TinyNet(), ATTACK, IAT(layers=[0, 2]))
    linear = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), spec())
    with pytest.raises(ValueError, match=r"at most 0 \(Sequential has the stages none\)"):
        IAT(layers=[1]).bind(linear)
    IAT().bind(linear)
