"""ObsAtk: zero mean, radius, projection and strength."""

import math

import pytest
import torch
from torch import nn

from lightning_paf.attacks import ZeroMeanPGD
from lightning_paf.attacks.zero_mean_pgd import without_mean
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.image_quality import psnr
from lightning_paf.functional.losses import squared_distance
from lightning_paf.nets.dncnn import DnCNN

BALL = geometry_of("l2")


def problem(seed=0, size=16):
    """Clean images without pixels at the ends of the range, and noisy ones."""
    torch.manual_seed(seed)
    clean = 0.3 + 0.4 * torch.rand(4, 3, size, size)
    return clean, clean + 0.02 * torch.randn_like(clean)


def denoiser():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


@pytest.mark.parametrize("steps", [1, 5])
def test_mean_and_length_of_the_perturbation(steps):
    clean, noisy = problem()
    attack = ZeroMeanPGD(0.5, steps=steps)
    delta = (attack(denoiser(), noisy, clean, loss=squared_distance) - noisy).double()
    assert delta.flatten(1).mean(1).abs().max() < 1e-6
    sizes = BALL.size(delta)
    assert (sizes <= 0.5 * (1 + 1e-5)).all()
    assert (sizes > 0.49).all()


def test_shrinking_keeps_the_mean():
    torch.manual_seed(0)
    delta = without_mean(torch.randn(3, 2, 5, 5, dtype=torch.float64))
    assert BALL.project(delta, 0.1).flatten(1).sum(1).abs().max() < 1e-14


def test_a_constant_is_projected_to_zero():
    assert without_mean(torch.full((2, 3, 4, 4), 0.3)).abs().max() < 1e-7


def test_projection_onto_ball_and_hyperplane_is_the_nearest_point():
    torch.manual_seed(0)
    delta = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    nearest = BALL.project(without_mean(delta), 1.0)
    others = BALL.project(without_mean(torch.randn(5000, 1, 4, 4, dtype=torch.float64)), 1.0)
    inner = ((delta - nearest) * (others - nearest)).flatten(1).sum(1)
    assert inner.max() <= 1e-12  # of a convex set


def test_the_bias_of_a_denoiser_cannot_be_attacked():
    """The error of D(v) = v + c is raised most by a constant, which has no part of mean zero."""
    clean = torch.full((1, 1, 4, 4), 0.5)
    adversarial = ZeroMeanPGD(0.1)(Shift(), clean, clean, loss=squared_distance)
    torch.testing.assert_close(adversarial, clean, atol=1e-6, rtol=0)


class Shift(nn.Module):
    """Adds a constant."""

    def forward(self, x):
        return x.mean((1, 2, 3), keepdim=True).expand_as(x) + 0.1


def test_the_first_step_follows_the_gradient_of_mean_zero():
    """For D(v) = A v, the loss of one step is known: the gradient is 2 A'(A v - x)."""
    clean, noisy = problem(size=4)
    factors = torch.linspace(0.2, 2, 48).reshape(1, 3, 4, 4)

    class Scaled(nn.Module):
        def forward(self, x):
            return factors * x

    delta = ZeroMeanPGD(0.05, steps=1)(Scaled(), noisy, clean, loss=squared_distance) - noisy
    gradient = 2 * factors * (factors * noisy - clean)
    length = BALL.size(gradient).view(-1, 1, 1, 1)
    expected = without_mean(0.05 * gradient / length)
    torch.testing.assert_close(delta, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("net", [denoiser, lambda: DnCNN(3, depth=4, width=8)], ids=["plain", "dncnn"])
def test_it_is_stronger_than_random_directions(net):
    clean, noisy = problem()
    net = net().eval()
    adversarial = ZeroMeanPGD(0.5)(net, noisy, clean, loss=squared_distance)
    lengths = BALL.size(adversarial - noisy).view(-1, 1, 1, 1)
    directions = without_mean(torch.randn(20, *clean.shape[1:]))
    directions /= BALL.size(directions).view(-1, 1, 1, 1)
    with torch.no_grad():
        attacked = psnr(net(adversarial), clean)
        random = torch.stack([psnr(net(noisy + lengths * direction), clean) for direction in directions])
    assert (attacked < random.min(0).values).all()


def test_pixels_at_the_end_of_the_range_stay_inside():
    clean = torch.rand(4, 1, 8, 8).round()
    adversarial = ZeroMeanPGD(1.0)(nn.Conv2d(1, 1, 3, padding=1), clean, 1 - clean, loss=squared_distance)
    assert (adversarial.min() >= 0, adversarial.max() <= 1) == (True, True)
    assert (BALL.size(adversarial - clean) <= 1).all()


def test_the_level_is_the_root_mean_square():
    clean, noisy = problem()
    attack = ZeroMeanPGD.at_level(5 / 255, clean[0], steps=5)
    delta = attack(denoiser(), noisy, clean, loss=squared_distance) - noisy
    torch.testing.assert_close(delta.square().flatten(1).mean(1).sqrt(), torch.full((4,), 5 / 255), rtol=1e-3, atol=0)
    assert attack.radius == pytest.approx(5 / 255 * math.sqrt(3 * 16 * 16))
    assert ZeroMeanPGD.at_level(7 / 255, torch.zeros(3, 3000, 3000), 5).radius > 50


@pytest.mark.parametrize("options", [{"eps": 0}, {"eps": -1.0}, {"steps": 0}, {"step_size": 0.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        ZeroMeanPGD(**options)
