from fractions import Fraction

import pytest
import torch
from torch import nn

from lightning_paf.attacks import NFGSM, RSFGSM

EPS = Fraction(8, 255)


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


def grey(n=8):
    return 0.4 + 0.2 * torch.rand(n, 1, 4, 4), torch.randint(4, (n,))


def test_nfgsm_leaves_the_ball_by_what_it_says():
    model, (x, y) = network(), grey(64)
    attack = NFGSM(EPS)
    assert attack.radius == pytest.approx(3 * 8 / 255)
    assert attack.describe()["radius"] == attack.radius
    largest = (attack(model, x, y) - x).abs().max().item()
    assert 2.5 * 8 / 255 < largest <= attack.radius


def test_nfgsm_takes_the_gradient_at_the_noisy_image():
    model, (x, y) = network(), grey()
    seen = []
    x_adv = NFGSM(EPS, noise=1, step_size=0.1)(model, x, y, forward=lambda z: model(seen.append(z.detach()) or z))
    assert len(seen) == 1
    assert 0 < (seen[0] - x).abs().max() <= 8 / 255
    torch.testing.assert_close((x_adv - seen[0]).abs(), torch.full_like(x, 0.1))


def test_random_start_step_is_one_and_a_quarter_eps():
    model, (x, y) = network(), grey()
    seen = []
    x_adv = RSFGSM(EPS)(model, x, y, forward=lambda z: model(seen.append(z.detach()) or z))
    step = (x_adv - seen[0]).abs()
    assert step.max() <= 10 / 255 + 1e-6
    assert (step > 10 / 255 - 1e-6).any()
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-8
    assert (RSFGSM(EPS, step_size=EPS)(model, x, y) - x).abs().max() <= 8 / 255 + 1e-8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NFGSM(noise=-1), "noise must be at least 0, got -1"),
        (lambda: NFGSM(step_size=0), "step_size must be positive, got 0"),
        (lambda: RSFGSM(step_size=-0.1), "step_size must be positive, got -0.1"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
