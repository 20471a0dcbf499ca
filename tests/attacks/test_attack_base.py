import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from lightning_paf.attacks import APGD, FGSM, PGD, Restarts, loss_and_gradient, radius_text
from lightning_paf.functional import cross_entropy, margin


@pytest.mark.parametrize("eps", [0, 0.0, -0.1, Fraction(0), math.nan, math.inf])
def test_eps_must_be_positive(eps):
    with pytest.raises(ValueError, match="eps must be positive and finite"):
        FGSM(eps)


@pytest.mark.parametrize(
    ("eps", "norm"), [(8, "linf"), (8.0, "linf"), (Fraction(256, 255), "linf"), (128, "l2"), (3060, "l1")]
)
def test_eps_in_grey_levels_is_rejected(eps, norm):
    with pytest.raises(ValueError, match=rf"pixel range in {norm}, got .*/255"):
        FGSM(eps, norm=norm)


@pytest.mark.parametrize(("eps", "norm"), [(1, "linf"), (3.0, "l2"), (12, "l1"), (255, "l1")])
def test_published_threat_models_are_accepted(eps, norm):
    assert FGSM(eps, norm=norm).radius == eps


def test_without_bounds_eps_has_no_limit():
    assert FGSM(8, bounds=None).radius == 8


@pytest.mark.parametrize("eps", ["8/255", None, True])
def test_eps_must_be_a_number(eps):
    with pytest.raises(TypeError, match=r"Fraction\(8, 255\)"):
        FGSM(eps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l0"}, "norm must be one of linf, l2, l1"),
        ({"mode": "test"}, "mode must be eval or train"),
        ({"bounds": (1.0, 0.0)}, "bounds must be increasing"),
    ],
)
def test_invalid_settings(options, message):
    with pytest.raises(ValueError, match=message):
        FGSM(**options)


@pytest.mark.parametrize(
    ("radius", "text"),
    [
        (Fraction(8, 255), "8/255"),
        (Fraction(12, 255), "12/255"),
        (Fraction(1, 2), "1/2"),
        (Fraction(1), "1"),
        (Fraction(1, 102), "2.5/255"),
        (Fraction(1, 510), "0.5/255"),
        (Fraction(1, 10), "1/10"),
        (Fraction(1, 34), "7.5/255"),
        (Fraction(1, 7), "1/7"),
        (Fraction(1, 17 * 7), "1/119"),
        (0.031, "0.031"),
        (1, "1"),
    ],
)
def test_radius_text(radius, text):
    assert radius_text(radius) == text


def test_eps_is_kept_as_given():
    attack = PGD(Fraction(4, 255))
    assert attack.eps == Fraction(4, 255)
    assert attack.radius == pytest.approx(4 / 255)
    assert attack.describe()["eps"] == "4/255"


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
    assert model.fast_forward.uses == []


def test_a_forward_in_the_call_is_attacked():
    model, x, y = with_fast_forward()
    FGSM()(model, x, y, forward=model)
    assert model.fast_forward.uses == []


def test_a_model_without_a_fast_forward_is_attacked_itself():
    model, x, y = with_fast_forward()
    FGSM()(model, x, y)
    model.fast_forward = None
    assert FGSM()(model, x, y).shape == x.shape
