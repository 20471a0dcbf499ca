"""Stages of networks, and replacement of their outputs."""

import pytest
import torch
from helpers.fakes import TinyNet
from torch import nn

from lightning_paf.nets import CifarResNet, DMWideResNet, PreActResNet, SmallConvNet, TimmNet, WideResNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.stages import changed_stage, stages
from lightning_paf.nn.swap import swap_activations

FOUR = ["layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: PreActResNet(width=4), FOUR),
        (lambda: CifarResNet(width=4), FOUR),
        (lambda: WideResNet(10, 1), ["block1", "block2", "block3"]),
        (lambda: DMWideResNet(10, 1), ["layer.0", "layer.1", "layer.2"]),
        (SmallConvNet, ["features.1", "features.3", "features.5", "features.7"]),
        (TinyNet, ["activation"]),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), []),
    ],
)
def test_stages_are_the_usual_ones_with_any_activation(make, expected):
    net = make()
    assert stages(net) == expected
    if expected:
        swap_activations(net, PSSiLU)
        assert stages(net) == expected


def test_stages_of_timm_networks():
    pytest.importorskip("timm")
    blocks = stages(TimmNet("test_vit", num_classes=10))
    assert blocks
    assert all(path.startswith("net.blocks.") for path in blocks)
    for name in ("test_convnext", "test_convnext3"):  # with GELUTanh, with SiLU
        assert stages(TimmNet(name, num_classes=10)) == [f"net.stages.{number}" for number in range(4)]


@pytest.mark.parametrize("build", [lambda: PreActResNet(width=4, in_channels=1), SmallConvNet])
def test_the_output_of_a_stage_is_replaced_for_one_pass(build):
    net, x = build().eval(), torch.rand(2, 1, 8, 8)
    plain = net(x)
    for number in range(1, len(stages(net)) + 1):
        seen = []
        with changed_stage(net, number, lambda h, seen=seen: seen.append(h) or h):
            assert torch.equal(net(x), plain)
        assert len(seen) == 1
        with changed_stage(net, number, torch.zeros_like):
            assert not torch.equal(net(x), plain)
        assert torch.equal(net(x), plain)


def test_one_activation_can_end_several_stages():
    net, x = SmallConvNet(), torch.rand(2, 1, 8, 8)
    swap_activations(net, PSSiLU)
    for number in (1, 2, 3, 4):
        seen = []
        with changed_stage(net, number, lambda h, seen=seen: seen.append(h) or h):
            net(x)
        torch.testing.assert_close(seen[0], net.features[: 2 * number](x))
        assert len(seen) == 1
