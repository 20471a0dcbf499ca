import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_paf.nets import CifarResNet, DMPreActResNet, DMWideResNet, LeNet, PreActResNet, WideResNet
from lightning_paf.nets.layers import SameConv2d, Standardize, conv3x3, stage
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import dataset_spec


@settings(max_examples=20, deadline=None)
@given(height=st.integers(3, 17), width=st.integers(3, 17), stride=st.sampled_from([1, 2]))
def test_same_convolution_pads_as_tensorflow_defines_it(height, width, stride):
    torch.manual_seed(0)
    layer, x = SameConv2d(2, 3, stride), torch.randn(1, 2, height, width)
    pad = []
    for side in (width, height):
        total = max((-(-side // stride) - 1) * stride + 3 - side, 0)
        pad += [total // 2, total - total // 2]
    expected = F.conv2d(F.pad(x, pad), layer.weight, stride=stride)
    assert expected.shape[-2:] == (-(-height // stride), -(-width // stride))
    torch.testing.assert_close(layer(x), expected)


def test_same_convolution_at_stride_2_is_the_released_padding_and_not_padding_1():
    torch.manual_seed(0)
    layer, x = SameConv2d(2, 3, stride=2), torch.randn(1, 2, 8, 8)
    torch.testing.assert_close(layer(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), layer.weight, stride=2))
    symmetric = F.conv2d(x, layer.weight, stride=2, padding=1)
    assert symmetric.shape == layer(x).shape
    assert not torch.allclose(symmetric, layer(x))


def test_weights_do_not_transfer_between_the_two_wide_resnets():
    torch.manual_seed(0)
    ours, theirs = WideResNet(10, 1).eval(), DMWideResNet(10, 1).eval()
    for module in theirs.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.ReLU())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.shape == other.shape
        other.data.copy_(mine.data)
    x = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(ours(x), theirs(x))
    for module in theirs.modules():
        if isinstance(module, SameConv2d):
            module.forward = lambda z, conv=module: F.conv2d(z, conv.weight, stride=conv.stride, padding=1)
    torch.testing.assert_close(ours(x), theirs(x))  # so the padding was the whole difference


def test_standardize():
    layer = Standardize((0.1, 0.2), (0.5, 2.0), in_channels=2)
    x = torch.rand(3, 2, 4, 4)
    expected = torch.stack([(x[:, 0] - 0.1) / 0.5, (x[:, 1] - 0.2) / 2.0], dim=1)
    torch.testing.assert_close(layer(x), expected)
    assert not layer.state_dict()
    assert torch.equal(Standardize((), (), in_channels=2)(x), x)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5,)), ((0.5,) * 3, ()), ((), (0.5,) * 3)])
def test_standardize_refuses_statistics_of_another_length(mean, std):
    with pytest.raises(ValueError, match="each of the 3 channels"):
        DMWideResNet(10, 1, mean=mean, std=std)


def test_stage_gives_stride_and_channels_to_the_first_block_only():
    made = []

    def block(*args):
        made.append(args)
        return nn.Identity()

    assert len(stage(block, 3, 4, 8, 2)) == 3
    assert made == [(4, 8, 2), (8, 8, 1), (8, 8, 1)]
    assert stage(conv3x3, 2, 4, 8, 2)(torch.rand(1, 4, 6, 6)).shape == (1, 8, 3, 3)


@pytest.mark.parametrize("cls", [WideResNet, DMWideResNet])
@pytest.mark.parametrize(("depth", "remedy"), [(27, "22 or 28"), (30, "28 or 34"), (4, "10 or 16"), (-2, "10 or 16")])
def test_wide_resnets_refuse_other_depths(cls, depth, remedy):
    with pytest.raises(ValueError, match=f"6 n \\+ 4.*depth={depth}.*--model.net.depth {remedy}"):
        cls(depth=depth, width=1)


@pytest.mark.parametrize("cls", [CifarResNet, PreActResNet, DMPreActResNet])
def test_resnets_refuse_other_depths(cls):
    with pytest.raises(ValueError, match=r"depth=50.*--model\.net\.depth 18 or 34"):
        cls(depth=50, width=1)


def test_resnet_refuses_an_unknown_stem():
    with pytest.raises(ValueError, match=r"stem must be .*got 'tiny'.*--model\.net\.stem"):
        CifarResNet(stem="tiny", width=1)


@pytest.mark.parametrize("cls", [DMWideResNet, DMPreActResNet])
def test_batchnorm_momentum(cls):
    net = cls(width=1, bn_momentum=0.01)
    assert {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)} == {0.01}


@pytest.mark.parametrize("cls", [WideResNet, DMWideResNet])
def test_wide_resnets_start_with_a_classifier_without_bias(cls):
    assert not cls(depth=10, width=1).get_classifier().bias.any()


def test_lenet_refuses_images_that_are_too_small():
    assert LeNet()(torch.rand(2, 3, LeNet.smallest_side, LeNet.smallest_side)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels for LeNet, got 8 x 8 from digits"):
        Classifier(LeNet(1), dataset_spec("digits"))
