"""DnCNN: layers, size and initial weights."""

import pytest
import torch
from torch import nn

from lightning_paf.nets.dncnn import DnCNN
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations


@pytest.mark.parametrize(("channels", "depth", "parameters"), [(1, 17, 556_032), (1, 20, 667_008), (3, 20, 669_312)])
def test_the_number_of_parameters(channels, depth, parameters):
    """9 (2 C 64 + (depth - 2) 64^2) weights, and 2 * 64 for each normalisation."""
    net = DnCNN(channels, depth)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert 9 * (2 * channels * 64 + (depth - 2) * 64**2) + (depth - 2) * 128 == parameters
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == depth


def test_zero_noise_leaves_the_image():
    net, x = DnCNN(1, depth=3, width=4), torch.rand(2, 1, 9, 7)
    net.layers[-1].weight.data.zero_()
    assert torch.equal(net(x), x)


def test_initial_weights():
    torch.manual_seed(0)
    net = DnCNN(3, depth=20)
    assert net.layers[2].weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    scales = torch.cat([module.weight for module in net.modules() if isinstance(module, nn.BatchNorm2d)])
    assert scales.abs().max().item() == pytest.approx(0.025)


def test_activations_are_replaced():
    net = DnCNN(1, depth=5, width=4)
    assert swap_activations(net, PSSiLU) == 4
    assert net(torch.rand(1, 1, 8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("options", [{"depth": 1}, {"width": 0}, {"in_channels": 0}])
def test_bad_sizes_are_refused(options):
    with pytest.raises(ValueError, match="must be at least"):
        DnCNN(**options)
