"""Contract of all subclasses of `Attack` in the package; a new one needs no edit here."""

import copy
import random

import numpy as np
import pytest
import torch
from helpers.devices import devices
from helpers.every_attack import ATTACKS, MAKE, assert_allowed, attacks, batch, network

from lightning_paf.attacks import APGD, FGSM, PGD, AutoAttack, ReferenceAutoAttack, Restarts, WorstOf
from lightning_paf.functional import cross_entropy, kl_divergence
from lightning_paf.nn.modes import frozen

pytestmark = pytest.mark.usefixtures("short_budgets")

losses = pytest.mark.parametrize(
    "attack",
    [MAKE.get(cls, cls)() for cls in ATTACKS if not cls.fixed_loss],
    ids=[cls.__name__ for cls in ATTACKS if not cls.fixed_loss],
)


def state(net):
    flags = [module.training for module in net.modules()]
    gradients = [(parameter.requires_grad, parameter.grad) for parameter in net.parameters()]
    identities = [id(tensor) for tensor in [*net.parameters(), *net.buffers()]]
    return flags, gradients, identities, copy.deepcopy(net.state_dict())


def assert_untouched(before, net):
    after = state(net)
    assert before[:3] == after[:3]
    assert all(torch.equal(tensor, after[3][key]) for key, tensor in before[3].items())


def test_subclasses_are_found():
    assert {APGD, PGD, FGSM, AutoAttack, ReferenceAutoAttack, Restarts, WorstOf} <= set(ATTACKS)


@devices
@attacks
def test_result_is_allowed_and_everything_else_is_left_as_found(attack, device):
    net, (x, y) = network().to(device), (tensor.to(device) for tensor in batch())
    x_before, y_before, calls_of_hooks = x.clone(), y.clone(), []
    cross_entropy(net(x), y).mean().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    for parameter in net.parameters():
        if parameter.requires_grad:  # DistributedDataParallel reduces gradients in such hooks
            parameter.register_hook(calls_of_hooks.append)
            parameter.register_post_accumulate_grad_hook(calls_of_hooks.append)
    before, python_state = state(net), random.getstate()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    x_adv = attack(net, x, y)
    assert (x_adv.shape, x_adv.dtype, x_adv.device, x_adv.requires_grad) == (x.shape, x.dtype, x.device, False)
    assert_allowed(attack, x, x_adv)
    assert not torch.equal(x_adv, x)
    x_adv.fill_(0.5)
    assert torch.equal(x, x_before), "shares memory"
    assert torch.equal(y, y_before)
    assert_untouched(before, net)
    assert calls_of_hooks == []
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@attacks
def test_a_label_outside_the_classes_is_no_error_of_torch(attack):
    """Attacks that work without a loss count such an image as misclassified."""
    net, (x, y) = network(), batch()
    y[1] = 5
    try:
        assert_allowed(attack, x, attack(net, x, y))
    except ValueError as error:
        assert "labels of shape (6,), int64, from 0 below 5" in str(error)  # noqa: PT017


@attacks
def test_train_mode_leaves_the_model_as_found(attack):
    attack = copy.copy(attack)
    attack.mode = "train"
    net, (x, y) = network(), batch()
    before = state(net)
    attack(net, x, y)
    assert_untouched(before, net)


@attacks
def test_model_is_left_as_found_if_it_fails(attack):
    net, (x, y) = network(), batch()

    def fail(*_):
        raise RuntimeError("lost the device")

    handle = net[4].register_forward_hook(fail)
    before = state(net)
    with pytest.raises((RuntimeError, ValueError), match="lost the device"):  # ensembles check the model first
        attack(net, x, y)
    handle.remove()
    assert_untouched(before, net)


@attacks
def test_seed_determines_the_result_even_without_gradients_around_the_call(attack):
    net, (x, y) = network(), batch()
    torch.manual_seed(7)
    first = attack(net, x, y)
    torch.manual_seed(7)
    assert torch.equal(attack(net, x, y), first)
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            x, y = batch()  # under inference_mode, autograd cannot save these
            torch.manual_seed(7)
            inside = attack(net, x, y)
            assert not torch.is_grad_enabled()
        torch.testing.assert_close(inside, first)


@attacks
def test_single_example_and_empty_batch(attack):
    net, (x, y) = network(), batch()
    for rows in (slice(0, 0), slice(0, 1), slice(5, 6)):
        assert attack(net, x[rows], y[rows]).shape == x[rows].shape


@attacks
def test_pixels_must_lie_in_the_bounds(attack):
    net, (x, y) = network(), batch()
    before = state(net)
    with pytest.raises(ValueError, match=r"Pixels must lie in \[0, 1\] .* normalisation belongs inside the model"):
        attack(net, 4 * x - 2, y)
    with pytest.raises(ValueError, match="Pixels must lie in"):
        attack(net, torch.full_like(x, torch.nan), y)
    with pytest.raises(ValueError, match="Divide uint8 images by 255"):
        attack(net, (255 * x).byte(), y)
    assert_untouched(before, net)


@attacks
def test_description_is_plain_and_names_the_threat_model(attack):
    described = attack.describe()
    assert described["attack"] == type(attack).__name__
    assert described["norm"] == attack.norm
    assert described["eps_value"] == float(attack.eps)
    assert plain(described)


def plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


@losses
def test_custom_loss_and_forward_are_used(attack):
    net, x = network(), batch()[0]
    target = torch.full((6, 5), 0.2)
    calls = []

    def forward(z):
        calls.append(z.shape)
        return {"logits": net(z)}

    def loss(output, p):
        assert p.equal(target)
        return kl_divergence(output["logits"], p)

    x_adv = attack(net, x, target, loss=loss, forward=forward)
    assert calls
    with torch.no_grad(), frozen(net):
        assert (loss(forward(x_adv), target) > loss(forward(x), target)).float().mean() > 0.6


@losses
def test_loss_must_be_per_example(attack):
    net, (x, y) = network(), batch()
    with pytest.raises(ValueError, match=r"one value per example, shape \(6,\), got shape \(\)"):
        attack(net, x, y, loss=lambda z, t: cross_entropy(z, t).mean())


@pytest.mark.parametrize("cls", [cls for cls in ATTACKS if cls.fixed_loss])
def test_fixed_losses_refuse_another(cls):
    net, (x, y) = network(), batch()
    attack = MAKE.get(cls, cls)()
    with pytest.raises(ValueError, match="got a custom loss or forward"):
        attack(net, x, y, loss=cross_entropy)
    with pytest.raises(ValueError, match="got a custom loss or forward"):
        attack(net, x, y, forward=net)
    with pytest.raises(ValueError, match="got a custom loss or forward"):
        Restarts(attack, 2)(net, x, y, loss=cross_entropy)
