"""Losses of denoisers: closed forms and limits."""

import math

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from lightning_paf.attacks import ZeroMeanPGD
from lightning_paf.functional.image_quality import psnr, ssim
from lightning_paf.functional.losses import squared_distance
from lightning_paf.nets.dncnn import DnCNN
from lightning_paf.objectives.denoising import HybridAT, NormalTraining, VanillaAT

ATTACK = ZeroMeanPGD(0.2, steps=1)


def batch():
    torch.manual_seed(0)
    clean = 0.3 + 0.4 * torch.rand(4, 1, 12, 12)
    return clean + 0.05 * torch.randn_like(clean), clean


def test_normal_training_is_the_squared_error():
    net, (noisy, clean) = DnCNN(1, depth=3, width=4), batch()
    loss, logs = NormalTraining()(net, noisy, clean, ATTACK)
    torch.testing.assert_close(loss, nn.MSELoss(reduction="sum")(net(noisy), clean) / (2 * 4))
    assert set(logs) == {"psnr"}


def test_weight_0_is_normal_training():
    net, (noisy, clean) = DnCNN(1, depth=3, width=4), batch()
    expected = NormalTraining()(net, noisy, clean, ATTACK)[0]
    torch.testing.assert_close(HybridAT(0.0)(net, noisy, clean, ATTACK)[0], expected)


@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_instability_of_the_identity_is_the_length_of_the_perturbation(weight):
    """|D(v') - D(v)|^2 = |delta|^2 for D(v) = v."""
    noisy, clean = batch()
    delta = ATTACK(nn.Identity(), noisy, clean, loss=squared_distance) - noisy
    error, instability = (noisy - clean).square().sum(), delta.square().sum()
    expected = (error + weight * instability) / (1 + weight) / (2 * 4)
    torch.testing.assert_close(HybridAT(weight)(nn.Identity(), noisy, clean, ATTACK)[0], expected)
    assert 0.95 < instability / (4 * 0.2**2) <= 1


def test_vanilla_training_compares_with_the_clean_image():
    net, (noisy, clean) = DnCNN(1, depth=3, width=4), batch()
    adversarial = ATTACK(net, noisy, clean, loss=squared_distance)
    loss, logs = VanillaAT()(net, noisy, clean, ATTACK)
    torch.testing.assert_close(loss, (net(adversarial) - clean).square().sum() / (2 * 4))
    assert set(logs) == {"psnr_adv"}


@pytest.mark.parametrize("objective", [NormalTraining(), VanillaAT(), HybridAT()])
def test_every_parameter_gets_a_gradient(objective):
    net, (noisy, clean) = DnCNN(1, depth=4, width=4), batch()
    objective(net, noisy, clean, ATTACK)[0].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.training


def test_the_gradient_passes_through_both_outputs():
    """For D(v) = s v, the stability term s^2 |delta|^2 has the derivative 2 s |delta|^2."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.s = nn.Parameter(torch.tensor(0.8))

        def forward(self, x):
            return self.s * x

    net, (noisy, clean) = Scale(), batch()
    delta = ATTACK(net, noisy, clean, loss=squared_distance) - noisy
    HybridAT(1e6)(net, noisy, clean, ATTACK)[0].backward()
    expected = 2 * 0.8 * delta.square().sum() / 8
    torch.testing.assert_close(net.s.grad, expected, rtol=5e-3, atol=0)


def test_psnr_and_ssim_of_known_images():
    noisy, clean = batch()
    mse = (noisy - clean).square().flatten(1).mean(1)
    torch.testing.assert_close(psnr(noisy, clean), -10 * mse.log10())
    torch.testing.assert_close(psnr(noisy, clean)[0], peak_signal_noise_ratio(noisy[:1], clean[:1], data_range=1.0))
    assert psnr(torch.zeros(1, 1, 12, 12), torch.full((1, 1, 12, 12), 0.1)).item() == pytest.approx(20, rel=1e-4)
    assert psnr(clean, clean)[0] == math.inf
    torch.testing.assert_close(ssim(clean, clean), torch.ones(4))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"weight must be finite and >= 0, got -1"):
        HybridAT(-1)
