"""Parameters of the activations: state dict, gradients, penalty, clipping and validation."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_paf.nn.activations import (
    PELU,
    ParametricActivation,
    PReLU,
    PReLUPlus,
    PSiLU,
    PSoftplus,
    PSSiLU,
    PSSiLUFixed,
    ReLU,
)

PARAMETRIC = [c for c in ParametricActivation.__subclasses__() if c.__module__.startswith("lightning_paf.")]
X = torch.linspace(-2, 2, 9)


@pytest.mark.parametrize("cls", PARAMETRIC)
def test_parameters_have_shape_one_and_fixed_alpha_stays_in_the_state_dict(cls):
    activation = cls(alpha=3, learn_alpha=False)
    assert all(tensor.shape == (1,) for tensor in activation.state_dict().values())
    assert activation.state_dict()["alpha"].item() == 3
    assert not activation.alpha.requires_grad
    assert activation.alpha.dtype == torch.float32  # from an int
    activation(torch.randn(5, requires_grad=True)).sum().backward()
    assert activation.alpha.grad is None


def test_order_of_keys_and_initial_values_are_the_released_ones():
    activation = PSSiLU()
    assert list(activation.state_dict()) == [name for name, _ in activation.named_parameters()] == ["beta", "alpha"]
    assert activation.beta.item() == pytest.approx(1e-8)
    starts = {cls.__name__: cls().alpha.item() for cls in PARAMETRIC}
    assert {name for name, alpha in starts.items() if alpha == 0} == {"PReLU", "ReBLU"}
    assert set(starts.values()) == {0, 1}


def test_checkpoints_contain_a_fixed_beta():
    trained, fresh = PSSiLUFixed(beta=0.42), PSSiLUFixed()
    assert fresh.beta.item() == pytest.approx(0.3)
    assert [name for name, _ in trained.named_parameters()] == ["alpha"]
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh(X), trained(X))


def test_beta_has_a_gradient_at_its_initial_value():
    activation = PSSiLU()
    activation(torch.linspace(-2, 1, 9)).sum().backward()
    assert activation.beta.grad.abs().item() > 0.1


@pytest.mark.parametrize("beta", [0.95, -1.0, 7.0])
def test_beyond_its_bound_only_the_penalty_acts_on_beta(beta):
    activation = PSSiLU()
    activation.beta.data.fill_(beta)
    torch.testing.assert_close(activation(X), PSSiLU(beta=0.9)(X))
    (activation(X).sum() + activation.penalty()).backward()
    assert activation.beta.grad.item() == math.copysign(10, beta)


@pytest.mark.parametrize("alpha", [0.004, -0.004])
def test_below_its_bound_alpha_of_psoftplus_can_grow_again(alpha):
    activation = PSoftplus(alpha)
    torch.testing.assert_close(activation(X), PSoftplus(0.01)(X))
    activation(X).sum().backward()  # a larger |alpha| makes the sum smaller
    assert activation.alpha.grad.item() * alpha < 0


def test_only_pssilu_has_a_penalty():
    others = [ReLU(), *(cls(alpha=0.5) for cls in PARAMETRIC if cls is not PSSiLU)]
    assert all(activation.penalty().item() == 0 for activation in others)
    activation = PSSiLU(beta=-0.2)
    activation.penalty().backward()
    assert activation.penalty().shape == ()
    assert activation.penalty().item() == pytest.approx(2.0)
    assert activation.beta.grad.item() == -10
    assert PSSiLU(beta=-0.2, penalty_weight=5.0, penalty_power=2).penalty().item() == pytest.approx(0.2)


def test_only_the_gradient_of_beta_is_clipped():
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
        (lambda: PSSiLU(beta=0.0), r"beta must satisfy 0 < .beta. <= 0.9 .* got 0.0. Pass --model.activation.beta"),
        (lambda: PSSiLU(beta=-0.95), "beta must satisfy"),
        (lambda: PSSiLU(beta=math.nan), "beta must satisfy"),
        (lambda: PSSiLU(penalty_weight=-1.0), "penalty_weight must be finite and at least 0.* got -1.0"),
        (lambda: PSSiLU(beta_clip=0.0), "beta_clip above 0"),
        (lambda: PSSiLUFixed(beta=1.0), r"beta must be in \[0, 0.9\].* got 1.0"),
        (lambda: PSSiLUFixed(beta=-0.1), r"beta must be in \[0, 0.9\]"),
        *((lambda cls=cls: cls(alpha=0.0), "alpha must not be 0") for cls in (PSSiLU, PSiLU, PSoftplus, PReLUPlus)),
        (lambda: PReLU(alpha=1.0, learn_alpha=False), "alpha must not be 1 .* makes the network linear"),
        (lambda: PELU(alpha=math.inf), "alpha must be finite, got inf"),
    ],
)
def test_invalid_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("cls", PARAMETRIC)
@pytest.mark.parametrize(("shape", "dim"), [((2, 3, 4, 5), 1), ((2, 4, 5, 3), -1), ((2, 3), 1)])
def test_parameters_per_channel_act_on_their_channel(cls, shape, dim):
    activation = cls(alpha=0.5).per_channel(3, dim)
    assert {p.shape for p in activation.parameters()} == {(3,)}
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


def test_parameters_per_channel_keep_the_fixed_alpha_and_the_order_of_keys():
    activation = PSSiLU(learn_alpha=False).per_channel(4)
    assert list(activation.state_dict()) == ["beta", "alpha"]
    assert [p.requires_grad for p in activation.parameters()] == [True, False]
    activation.beta.data.fill_(0.1)
    assert activation.penalty().item() == pytest.approx(4.0)


def test_a_copied_network_still_shares_its_activation():
    shared = PSSiLU()
    net = copy.deepcopy(nn.Sequential(shared, nn.Identity(), shared))
    assert net[0] is net[2] is not shared
    assert len(list(net.parameters())) == 2
    assert len(net.state_dict()) == 4
