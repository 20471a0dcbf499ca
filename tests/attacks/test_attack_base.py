"""Base class of attacks: gradients, losses and input checks."""

import pytest
import torch
from torch import nn

from lightning_paf.attacks import APGD, FGSM, PGD, Restarts, loss_and_gradient
from lightning_paf.functional import cross_entropy, margin


def test_gradient_is_that_of_the_sum():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    values, gradient = loss_and_gradient(model, x, y, cross_entropy)
    expected = (model(x).softmax(1) - nn.functional.one_hot(y, 3)) @ model[1].weight
    torch.testing.assert_close(gradient.flatten(1), expected.detach())
    torch.testing.assert_close(values, cross_entropy(model(x), y).detach())
    one = loss_and_gradient(model, x[:1], y[:1], cross_entropy)[1]
    torch.testing.assert_close(one, gradient[:1])  # independent of the rest of the batch


def test_loss_of_the_call_replaces_the_attacks_own():
    used = []

    def own(z, y):
        used.append("own")
        return cross_entropy(z, y)

    def other(z, y):
        used.append("other")
        return margin(z, y)

    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    attack = FGSM(loss=own)
    attack(model, x, y, loss=other)
    attack(model, x, y)
    assert used == ["other", "own"]
    assert attack.describe()["loss"] == "own"


def test_rounding_errors_of_augmentation_are_tolerated():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.full((2, 1, 2, 2), 1 + 1e-6)
    assert FGSM()(model, x, torch.tensor([0, 1])).max() <= 1


def test_attack_inside_autocast_leaves_the_training_gradients_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 3))
    x, y = torch.rand(6, 1, 4, 4), torch.randint(3, (6,))

    def gradients(attacked):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            clean = cross_entropy(model(x), y).mean()
            if attacked:
                assert PGD(best=True)(model, x, y).dtype == torch.float32
            (clean + cross_entropy(model(x), y).mean()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    for with_attack, without in zip(gradients(True), gradients(False), strict=True):
        assert with_attack.abs().sum() > 0
        assert torch.equal(with_attack, without)


class FastForward:
    """A fake folded model that records its uses."""

    def __init__(self, model):
        self.model = model
        self.uses = []

    def refresh(self):
        self.uses.append(("refresh", self.model.training, self.model[1].weight.requires_grad))
        return self.call

    def call(self, x):
        self.uses.append("call")
        return self.model(x)


def with_fast_forward():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    model.fast_forward = FastForward(model)
    return model, torch.rand(2, 1, 4, 4), torch.tensor([0, 1])


def test_a_fast_forward_is_refreshed_once_and_then_attacked():
    model, x, y = with_fast_forward()
    PGD(steps=4)(model, x, y)
    assert model.fast_forward.uses == [("refresh", False, False), *["call"] * 4]
    assert model.training


@pytest.mark.parametrize("attack", [PGD(mode="train"), APGD(steps=3), Restarts(APGD(steps=3), 1)])
def test_train_mode_and_fixed_losses_use_the_model_itself(attack):
    model, x, y = with_fast_forward()
    attack(model, x, y)
    FGSM()(model, x, y, forward=model)
    assert model.fast_forward.uses == []
    model.fast_forward = None
    assert FGSM()(model, x, y).shape == x.shape
