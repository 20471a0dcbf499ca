"""Where the stages of networks are, and changing what leaves one."""

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
    ("net", "expected"),
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
def test_stages_are_where_a_reader_would_say(net, expected):
    assert stages(net()) == expected


def test_stages_do_not_depend_on_the_activation():
    for build in (lambda: PreActResNet(width=4), SmallConvNet):
        net = build()
        before = stages(net)
        swap_activations(net, PSSiLU)
        assert stages(net) == before


def test_blocks_of_a_transformer_are_its_stages():
    pytest.importorskip("timm")
    net = TimmNet("test_vit", num_classes=10)
    found = stages(net)
    assert found
    assert all(path.startswith("net.blocks.") for path in found)


@pytest.mark.parametrize("name", ["test_convnext", "test_convnext3"])  # with GELUTanh, with SiLU
def test_stages_of_a_convnext_are_its_own_whatever_its_activation(name):
    pytest.importorskip("timm")
    assert stages(TimmNet(name, num_classes=10)) == [f"net.stages.{number}" for number in range(4)]


@pytest.mark.parametrize("build", [lambda: PreActResNet(width=4, in_channels=1), SmallConvNet])
def test_what_changes_is_what_leaves_the_stage(build):
    net, x = build().eval(), torch.rand(2, 1, 8, 8)
    plain = net(x)
    for number in range(1, len(stages(net)) + 1):
        seen = []
        with changed_stage(net, number, lambda h, seen=seen: seen.append(h) or h):
            assert torch.equal(net(x), plain)
        assert len(seen) == 1
        with changed_stage(net, number, torch.zeros_like):
            assert not torch.equal(net(x), plain)
        assert torch.equal(net(x), plain), "nothing stays behind"


def test_one_activation_may_end_several_stages():
    net, x = SmallConvNet(), torch.rand(2, 1, 8, 8)
    swap_activations(net, PSSiLU)
    for number in (1, 2, 3, 4):
        seen = []
        with changed_stage(net, number, lambda h, seen=seen: seen.append(h) or h):
            net(x)
        torch.testing.assert_close(seen[0], net.features[: 2 * number](x))
        assert len(seen) == 1
