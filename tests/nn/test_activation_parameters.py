"""Parameters of the activations: what is stored, learned, penalised, clipped and refused."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_paf.nn.activations import PELU, PReLU, PReLUPlus, PSiLU, PSoftplus, PSSiLU, PSSiLUFixed, ReBLU, ReLU

PARAMETRIC = [PReLU, PReLUPlus, PELU, ReBLU, PSoftplus, PSiLU, PSSiLUFixed, PSSiLU]


@pytest.mark.parametrize("cls", PARAMETRIC)
def test_parameters_have_shape_one_and_fixed_alpha_stays_in_the_state_dict(cls):
    activation = cls(alpha=3, learn_alpha=False)
    assert all(tensor.shape == (1,) for tensor in activation.state_dict().values())
    assert activation.state_dict()["alpha"].item() == 3
    assert not activation.alpha.requires_grad
    assert activation.alpha.dtype == torch.float32  # from an int
    activation(torch.randn(5, requires_grad=True)).sum().backward()
    assert activation.alpha.grad is None


def test_released_order_of_keys_and_starts():
    activation = PSSiLU()
    assert list(activation.state_dict()) == [name for name, _ in activation.named_parameters()] == ["beta", "alpha"]
    assert activation.alpha.item() == 1
    assert activation.beta.item() == pytest.approx(1e-8)
    assert {cls: cls().alpha.item() for cls in (PReLU, PReLUPlus, PELU, ReBLU, PSoftplus, PSiLU)} == {
        PReLU: 0, PReLUPlus: 1, PELU: 1, ReBLU: 0, PSoftplus: 1, PSiLU: 1,
    }  # fmt: skip


def test_fixed_beta_travels_in_the_checkpoint():
    trained, fresh = PSSiLUFixed(beta=0.42), PSSiLUFixed()
    assert fresh.beta.item() == pytest.approx(0.3)
    assert [name for name, _ in trained.named_parameters()] == ["alpha"]
    fresh.load_state_dict(trained.state_dict())
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(fresh(x), trained(x))


def test_beta_leaves_its_start():
    activation = PSSiLU()
    activation(torch.linspace(-2, 1, 9)).sum().backward()
    assert activation.beta.grad.abs().item() > 0.1


@pytest.mark.parametrize("beta", [0.95, 1.0, -1.0, 7.0])
def test_beyond_its_bound_beta_is_frozen_in_the_function_and_led_back_by_the_penalty(beta):
    activation = PSSiLU()
    activation.beta.data.fill_(beta)
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(activation(x), PSSiLU(beta=0.9)(x))
    (activation(x).sum() + activation.penalty()).backward()
    assert activation.beta.grad.item() == math.copysign(10, beta)


@pytest.mark.parametrize("alpha", [0.004, -0.004])
def test_below_its_floor_psoftplus_stays_put_and_alpha_can_come_back(alpha):
    activation = PSoftplus(alpha)
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(activation(x), PSoftplus(0.01)(x))
    activation(x).sum().backward()  # a smaller sum wants a larger |alpha|
    assert activation.alpha.grad.item() * alpha < 0


def test_penalty_is_zero_but_for_pssilu_and_its_gradient_is_the_weight():
    assert all(
        activation.penalty().item() == 0 for activation in (ReLU(), *(cls(alpha=0.5) for cls in PARAMETRIC[:-1]))
    )
    activation = PSSiLU(beta=-0.2)
    activation.penalty().backward()
    assert activation.penalty().shape == ()
    assert activation.penalty().item() == pytest.approx(2.0)
    assert activation.beta.grad.item() == -10
    assert PSSiLU(beta=-0.2, penalty_weight=5.0, penalty_power=2).penalty().item() == pytest.approx(0.2)


def test_clip_acts_on_beta_alone():
    activation = PSSiLU(beta_clip=0.05)
    activation.clip_gradients()  # no gradient yet
    activation.alpha.grad, activation.beta.grad = torch.tensor([7.0]), torch.tensor([-7.0])
    activation.clip_gradients()
    assert activation.alpha.grad.item() == 7
    assert activation.beta.grad.item() == pytest.approx(-0.05, rel=1e-5)
    activation.beta.grad = torch.tensor([0.01])
    activation.clip_gradients()
    assert activation.beta.grad.item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PSSiLU(beta=0.0), "beta must satisfy 0 < .beta. <= 0.9 .* but is 0.0. Pass --model.activation.beta"),
        (lambda: PSSiLU(beta=-0.95), "beta must satisfy"),
        (lambda: PSSiLU(beta=math.nan), "beta must satisfy"),
        (lambda: PSSiLU(penalty_weight=-1.0), "penalty_weight must be >= 0"),
        (lambda: PSSiLU(beta_clip=0.0), "beta_clip > 0"),
        (lambda: PSSiLUFixed(beta=1.0), r"beta must be in \[0, 0.9\]"),
        (lambda: PSSiLUFixed(beta=-0.1), r"beta must be in \[0, 0.9\]"),
        (lambda: PSSiLU(alpha=0.0), "alpha must not be 0"),
        (lambda: PSiLU(alpha=0.0), "alpha must not be 0"),
        (lambda: PSoftplus(alpha=0.0), "alpha must not be 0"),
        (lambda: PReLUPlus(alpha=0.0), "alpha must not be 0"),
        (lambda: PReLU(alpha=1.0, learn_alpha=False), "makes the network linear"),
        (lambda: PELU(alpha=math.inf), "alpha must be finite"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("cls", PARAMETRIC)
@pytest.mark.parametrize(("shape", "dim"), [((2, 3, 4, 5), 1), ((2, 4, 5, 3), -1), ((2, 4, 3), -1), ((2, 3), 1)])
def test_per_channel_parameters_act_on_their_own_channel(cls, shape, dim):
    activation = cls(alpha=0.5).per_channel(3, dim)
    assert [p.shape for p in activation.parameters()] == [(3,)] * len(list(activation.parameters()))
    activation.alpha.data.copy_(torch.tensor([0.5, 1.5, 2.5]))
    x = torch.randn(shape)
    y = activation(x)
    y.square().sum().backward()
    for channel, alpha in enumerate((0.5, 1.5, 2.5)):
        alone = cls(alpha=alpha)
        part = alone(x.select(dim, channel))
        part.square().sum().backward()
        torch.testing.assert_close(y.select(dim, channel), part)
        torch.testing.assert_close(activation.alpha.grad[channel], alone.alpha.grad[0])


def test_per_channel_keeps_the_fixed_alpha_and_the_order_of_keys():
    activation = PSSiLU(learn_alpha=False).per_channel(4)
    assert list(activation.state_dict()) == ["beta", "alpha"]
    assert [p.requires_grad for p in activation.parameters()] == [True, False]
    activation.beta.data.fill_(0.1)
    assert activation.penalty().item() == pytest.approx(4.0)


def test_shared_activation_is_counted_once_and_survives_deepcopy():
    shared = PSSiLU()
    net = copy.deepcopy(nn.Sequential(shared, nn.Identity(), shared))
    assert net[0] is net[2] is not shared
    assert len(list(net.parameters())) == 2
    assert len(net.state_dict()) == 4
