"""Single-step attacks: noise, step, clip (de Jorge et al. 2022)."""

import pytest
import torch
from helpers.digits_net import Recorder
from helpers.fakes import images, tiny_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_paf.attacks import FGSM, NFGSM, PGD, RSFGSM, SingleStep
from lightning_paf.objectives import AdversarialCE

EPS = 0.05


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


def grey(n=64):
    """Far from black and white, so that no pixel is clamped."""
    return 0.4 + 0.2 * torch.rand(n, 3, 4, 4), torch.randint(5, (n,))


def found(attack, x, y, seed=0):
    torch.manual_seed(seed)
    return attack(network(), x, y)


@pytest.mark.parametrize(
    ("member", "general"),
    [
        (FGSM(EPS), SingleStep(EPS)),
        (FGSM(0.5, norm="l2"), SingleStep(0.5, norm="l2")),
        (RSFGSM(EPS), SingleStep(EPS, noise=1, step_size=1.25 * EPS, clip=1)),
        (NFGSM(EPS), SingleStep(EPS, noise=2, step_size=EPS, clip=None)),
        (NFGSM(EPS, noise=0), FGSM(EPS)),
        (FGSM(EPS), PGD(EPS, step_size=EPS, steps=1, start="none")),
        (SingleStep(EPS, noise=1), PGD(EPS, step_size=EPS, steps=1)),
    ],
    ids=["fgsm", "fgsm l2", "rs-fgsm", "n-fgsm", "no noise", "one step of pgd", "one step of pgd from noise"],
)
def test_special_cases_are_equal(member, general):
    x, y = grey()
    torch.testing.assert_close(found(member, x, y), found(general, x, y))


def test_without_a_step_only_the_noise_remains():
    x, y = grey()
    delta = found(SingleStep(EPS, noise=2, step_size=1e-12, clip=None), x, y) - x
    assert 1.9 * EPS < delta.abs().max() <= 2 * EPS + 1e-6
    assert abs(delta.mean()) < EPS / 10


@settings(max_examples=10, deadline=None)
@given(noise=st.floats(0, 3), step=st.floats(0.01, 0.3), clip=st.none() | st.floats(0.1, 3), seed=st.integers(0, 99))
def test_result_is_within_bounds_and_radius(noise, step, clip, seed):
    x, y = images(4)
    x, y = x[..., :4, :4], y % 5
    attack = SingleStep(EPS, noise=noise, step_size=step, clip=clip)
    assert attack.radius == pytest.approx(noise * EPS + step if clip is None else clip * EPS)
    x_adv = found(attack, x, y, seed)
    assert ((x_adv - x).abs() <= attack.radius + 1e-6).all()
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()


@pytest.mark.parametrize(("noise", "step"), [(1.0, EPS), (2.0, EPS), (2.0, 0.5 * EPS), (0.0, EPS)])
def test_mean_squared_size_has_a_closed_form(noise, step):
    """Per pixel k² eps² / 3 + alpha², where gradients are random and no pixel is clamped."""
    x, y = torch.full((200, 3, 16, 16), 0.5), torch.zeros(200, dtype=torch.long)
    signs = torch.randn_like(x)  # independent of the noise
    attack = SingleStep(EPS, noise=noise, step_size=step, clip=None)
    torch.manual_seed(1)
    x_adv = attack(nn.Identity(), x, y, forward=lambda z: (signs * z).sum((1, 2, 3)), loss=lambda out, _: out)
    size = (x_adv - x).square().mean().item()
    assert size == pytest.approx(noise**2 * EPS**2 / 3 + step**2, rel=0.05)


@pytest.mark.parametrize("attack", [FGSM(EPS), RSFGSM(EPS), NFGSM(EPS)], ids=lambda attack: attack.label)
def test_a_training_step_has_two_forward_and_two_backward_passes(attack):
    model, (x, y) = tiny_classifier().train(), images()
    passes = {"forward": 0, "backward": 0}

    def count(output):
        passes["backward"] += 1
        return output

    def hook(module, inputs, output):
        passes["forward"] += 1
        output.register_hook(count)

    model.register_forward_hook(hook)
    AdversarialCE("adversarial")(model, x, y, attack).loss.backward()
    assert passes == {"forward": 2, "backward": 2}


@pytest.mark.parametrize("attack", [RSFGSM(EPS), NFGSM(EPS)], ids=lambda attack: attack.label)
def test_noise_differs_between_calls_and_the_result_has_no_graph(attack):
    model, (x, y) = network(), grey()
    first, second = attack(model, x, y), attack(model, x, y)
    assert not torch.equal(first, second)
    assert not first.requires_grad
    assert first.grad_fn is None


def test_without_noise_no_random_number_is_drawn():
    model, (x, y) = network(), grey(2)
    state = torch.get_rng_state()
    SingleStep(EPS)(model, x, y)
    assert torch.equal(state, torch.get_rng_state())


def test_gradient_is_taken_at_the_noisy_image():
    model, (x, y) = network(), grey(8)
    recorder = Recorder(model)
    x_adv = NFGSM(EPS, noise=1, step_size=0.1)(model, x, y, forward=recorder)
    (noisy,) = recorder.images
    assert 0 < (noisy - x).abs().max() <= EPS
    torch.testing.assert_close((x_adv - noisy).abs(), torch.full_like(x, 0.1))
