"""Layers of the networks: padding, normalisation, strides and depths."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_paf.nets import CifarResNet, DMPreActResNet, DMWideResNet, LeNet, PreActResNet, SmallConvNet, WideResNet
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


def test_standardize():
    layer = Standardize((0.1, 0.2), (0.5, 2.0), in_channels=2)
    x = torch.rand(3, 2, 4, 4)
    expected = torch.stack([(x[:, 0] - 0.1) / 0.5, (x[:, 1] - 0.2) / 2.0], dim=1)
    torch.testing.assert_close(layer(x), expected)
    assert not layer.state_dict()
    assert torch.equal(Standardize((), (), in_channels=2)(x), x)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5,)), ((0.5,) * 3, ()), ((), (0.5,) * 3)])
def test_standardize_refuses_other_numbers_of_statistics(mean, std):
    with pytest.raises(ValueError, match="one value for each of the 3 channels"):
        DMWideResNet(10, 1, mean=mean, std=std)


@pytest.mark.parametrize("net", [CifarResNet, DMPreActResNet, PreActResNet])
def test_convolutions_start_with_fan_out_variance_or_the_default_of_pytorch(net):
    """The default has the variance 1 / (3 fan_in)."""
    torch.manual_seed(0)
    for he_init, variance in ((True, 2 / 288), (False, 1 / 864)):
        layers = [m for m in net(width=32, he_init=he_init).modules() if isinstance(m, nn.Conv2d)]
        found = [m.weight.var().item() for m in layers if m.weight.shape == (32, 32, 3, 3)]
        assert found
        assert found == pytest.approx([variance] * len(found), rel=0.1)


def test_without_its_final_norm_a_network_has_16_activations_and_no_keys_of_it():
    net = PreActResNet(width=8, final_norm=False)
    assert sum(isinstance(module, nn.ReLU) for module in net.modules()) == 16
    assert PreActResNet(width=8).state_dict().keys() - net.state_dict().keys() == {
        f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_stage_gives_stride_and_channels_to_the_first_block_only():
    made = []

    def block(*args):
        made.append(args)
        return nn.Identity()

    assert len(stage(block, 3, 4, 8, 2)) == 3
    assert made == [(4, 8, 2), (8, 8, 1), (8, 8, 1)]
    assert stage(conv3x3, 2, 4, 8, 2)(torch.rand(1, 4, 6, 6)).shape == (1, 8, 3, 3)


@pytest.mark.parametrize("cls", [WideResNet, DMWideResNet])
@pytest.mark.parametrize(("depth", "hint"), [(27, "22 or 28"), (30, "28 or 34"), (4, "10 or 16"), (-2, "10 or 16")])
def test_wide_resnets_refuse_other_depths(cls, depth, hint):
    with pytest.raises(ValueError, match=rf"depth must be 6 n \+ 4 .* got {depth}\..*--model\.net\.depth {hint}"):
        cls(depth=depth, width=1)


@pytest.mark.parametrize("cls", [CifarResNet, PreActResNet, DMPreActResNet])
def test_resnets_refuse_other_depths(cls):
    with pytest.raises(ValueError, match=r"depth must be 18 or 34, got 50\..*--model\.net\.depth 18"):
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


@pytest.mark.parametrize("cls", [PreActResNet, SmallConvNet])
def test_keys_do_not_depend_on_the_stride_of_the_stem(cls):
    one, two = (cls(in_channels=3, width=4, stem_stride=stride) for stride in (1, 2))
    two.load_state_dict(one.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert not torch.equal(one.eval()(x), two.eval()(x))


@pytest.mark.parametrize("cls", [PreActResNet, SmallConvNet])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_stride_of_the_stem_divides_the_size_of_all_maps(cls, stride):
    net, sizes = cls(in_channels=3, width=4, stem_stride=stride).eval(), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[-1]))
    net(torch.rand(1, 3, 24, 24))
    assert sizes[0] == 24 // stride
    assert max(sizes) == sizes[0]


@pytest.mark.parametrize("cls", [PreActResNet, SmallConvNet])
def test_a_stride_below_1_is_refused(cls):
    with pytest.raises(ValueError, match=r"stem_stride must be at least 1, got 0\..*--model\.net\.stem_stride 2"):
        cls(stem_stride=0)
