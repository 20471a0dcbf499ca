"""ER-CLA: its limit, the signs of both parts of the game, the bounds of the critic, and the delay."""

import pytest
import torch
from helpers.fakes import TinyNet, images, spec, tiny_classifier
from torch import nn
from torch.nn import functional as F

from lightning_paf.attacks import PGD, Attack
from lightning_paf.nets import EmbeddingNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives import ERCLA, Natural

ATTACK = PGD(0.1, step_size=0.05, steps=3)
X, Y = images()


class Brighter(Attack):
    """Records the labels to attack."""

    def perturb(self, forward, x, y, loss):
        self.y = y
        return (x + 0.1).clamp(0, 1)


def prepared(model=None, **options):
    model, objective = model or tiny_classifier().train(), ERCLA(**{"hidden": [8]} | options)
    torch.manual_seed(3)
    objective.bind(model)
    return objective, model


def embedding_classifier(**options):
    torch.manual_seed(0)
    inner = TinyNet()
    inner.get_classifier = lambda: inner.fc
    return Classifier(EmbeddingNet(inner, **options), spec()).train()


def linear_critic(weights, **options):
    """D(z) = log sigmoid(w . z)."""
    objective, model = prepared(hidden=[], **{"rate": 1.0} | options)
    with torch.no_grad():
        objective.critic[0].weight.copy_(weights)
        objective.critic[0].bias.zero_()
    return objective, model


def critic_inputs(objective):
    seen = []
    objective.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


def test_weight_0_is_clean_training_for_the_network():
    objective, model = prepared(weight=0)
    objective(model, X, Y, ATTACK).loss.backward()
    plain = tiny_classifier().train()
    Natural()(plain, X, Y, ATTACK).loss.backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())


def test_the_loss_is_cross_entropy_minus_the_gap():
    objective, model = prepared()
    result = objective(model, X, Y, ATTACK)
    torch.testing.assert_close(result.loss, result.logs["classification_loss"] - result.logs["critic_gap"])
    torch.testing.assert_close(result.logs["classification_loss"], F.cross_entropy(result.logits, Y).detach())
    assert result.clean_logits is None


def test_gradients_in_closed_form():
    """With D(z) = log sigmoid(w . z): dD/dz = (1 - sigmoid) w, dD/dw = (1 - sigmoid) z."""
    w = torch.tensor([[0.004, -0.002, 0.001, 0.003]])
    objective, _ = linear_critic(w, weight=0.3, std=2.0)
    z = (3 * torch.randn(6, 4)).requires_grad_()
    torch.manual_seed(7)
    gap = objective.critic_gap(z)
    torch.manual_seed(7)
    u = 2 * torch.randn(6, 4)
    slope_z, slope_u = (torch.sigmoid(-batch.detach() @ w.T) for batch in (z, u))
    torch.testing.assert_close(gap, F.logsigmoid(z @ w.T).mean() - F.logsigmoid(u @ w.T).mean())
    of_embeddings, of_critic = torch.autograd.grad(-gap, [z, objective.critic[0].weight])
    torch.testing.assert_close(of_embeddings, 0.3 * slope_z * w / 6)  # weight * E D(E(x)), which is minimised
    torch.testing.assert_close(of_critic, (slope_u * u - slope_z * z.detach()).mean(0, keepdim=True))


def test_embeddings_alone_approach_the_prior():
    torch.manual_seed(0)
    objective, _ = prepared(hidden=[32], clip=0.1, weight=1.0)
    z = nn.Parameter(torch.randn(256, 4) * 0.3 + 2)
    game = [{"params": [z], "lr": 0.03}, {"params": objective.parameters(), "lr": 0.003}]
    optimizer = torch.optim.RMSprop(game)
    for _ in range(500):
        objective.begin_step(0)
        optimizer.zero_grad()
        (-objective.critic_gap(z)).backward()
        optimizer.step()
    assert z.mean(0).abs().max() < 0.7


@pytest.mark.parametrize(("clip", "rate"), [(0.01, 0.5), (0.003, 2.0)])
def test_the_critic_is_within_its_bounds_whenever_the_loss_is_computed(clip, rate):
    objective, model = prepared(clip=clip, rate=rate)
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=1.0)
    inside = []
    objective.critic.register_forward_pre_hook(
        lambda critic, _: inside.append(max(rate * parameter.abs().max().item() for parameter in critic.parameters()))
    )
    for _ in range(3):
        with torch.no_grad():
            objective.critic[0].weight.add_(0.5)  # a step of any size
        objective.begin_step(0)
        optimizer.zero_grad()
        objective(model, X, Y, ATTACK).loss.backward()
        optimizer.step()
    assert len(inside) == 6
    assert max(inside) == pytest.approx(clip)


def test_the_critic_moves_at_its_rate():
    used = []
    for rate in (1.0, 0.25):
        objective, model = linear_critic(torch.tensor([[0.004, -0.002, 0.001, 0.003]]) / rate, rate=rate)
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-4, eps=1e-12)
        torch.manual_seed(5)
        objective(model, X, Y, ATTACK).loss.backward()
        before = rate * objective.critic[0].weight.detach()
        optimizer.step()
        used.append((before, rate * objective.critic[0].weight.detach() - before))
    (first, steps), (second, slower) = used
    torch.testing.assert_close(first, second)
    assert (steps.abs() > 9e-5).all()
    torch.testing.assert_close(slower, 0.25 * steps, rtol=1e-3, atol=0)


def test_the_published_critic():
    objective = ERCLA()
    objective.bind(tiny_classifier())
    kinds = [nn.Linear, nn.ReLU] * 4 + [nn.Linear, nn.LogSigmoid]
    assert all(isinstance(layer, kind) for layer, kind in zip(objective.critic, kinds, strict=True))
    assert [layer.in_features for layer in objective.critic if isinstance(layer, nn.Linear)] == [4, 512, 512, 512, 512]
    assert (objective.critic(torch.randn(5, 4)) < 0).all()


def test_an_inner_layer_can_be_the_embedding():
    model = embedding_classifier(dimensions=2, hidden=[6])
    objective, _ = prepared(model, embedding="embedding", weight=0.5)
    assert objective.critic[0].in_features == 2
    seen = critic_inputs(objective)
    objective(model, X, Y, ATTACK).loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(seen[0], model.net.embedding(model.net.encoder((X - 0.5) / 0.25)))
    assert not model.net.embedding._forward_hooks
    assert model.net.encoder.conv.weight.grad.abs().sum() > 0


def test_layers_after_the_embedding_learn_from_the_labels_alone():
    gradients = []
    for weight in (0.0, 5.0):
        model = embedding_classifier(dimensions=2, hidden=[6], dropout=0.0)
        objective, _ = prepared(model, embedding="embedding", weight=weight)
        objective(model, X, Y, ATTACK).loss.backward()
        gradients.append([p.grad for p in (model.net.embedding.weight, *model.net.classifier.parameters())])
    assert not torch.allclose(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1:], gradients[1][1:])


@pytest.mark.parametrize(("delay", "epochs"), [(2, {0: False, 1: False, 2: True, 3: True}), (None, {1000: False})])
def test_adversarial_images_join_after_the_delay(delay, epochs):
    objective, model = prepared(delay=delay)
    for epoch, joined in epochs.items():
        objective.on_epoch_start(epoch, 0.5)
        assert (objective(model, X, Y, ATTACK).clean_logits is not None) == joined


def test_joined_images_count_as_much_as_clean_ones():
    objective, model = prepared(delay=0)
    model.eval()  # so that images do not affect each other
    attack, seen = Brighter(0.2), critic_inputs(objective)
    result = objective(model, X, Y, attack)
    x_adv = (X + 0.1).clamp(0, 1)
    torch.testing.assert_close(result.logits, model(x_adv))
    torch.testing.assert_close(result.clean_logits, model(X))
    expected = (F.cross_entropy(model(X), Y) + F.cross_entropy(model(x_adv), Y)) / 2
    torch.testing.assert_close(result.logs["classification_loss"], expected.detach())
    torch.testing.assert_close(seen[0], torch.cat([model.outputs(X).features, model.outputs(x_adv).features]))
    assert torch.equal(attack.y, model(X).argmax(1))
    assert not torch.equal(attack.y, Y)


@pytest.mark.parametrize("name", ["conv", "nowhere"])
def test_an_embedding_must_be_a_linear_layer(name):
    message = rf"embedding must be the name of a linear layer of TinyNet \(fc\), got '{name}'\. Pass"
    with pytest.raises(ValueError, match=message):
        prepared(embedding=name)
