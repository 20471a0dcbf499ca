"""The stride of the first convolution (Li et al. 2022)."""

import pytest
import torch

from lightning_paf.nets import PreActResNet, SmallConvNet

NETS = pytest.mark.parametrize("cls", [PreActResNet, SmallConvNet])


@NETS
def test_a_stride_of_one_is_the_network_of_the_literature(cls):
    nets = []
    for options in ({}, {"stem_stride": 1}):
        torch.manual_seed(0)
        nets.append(cls(in_channels=1, width=4, **options).eval())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(nets[0](x), nets[1](x))


@NETS
def test_keys_and_shapes_do_not_depend_on_it(cls):
    one, two = (cls(in_channels=3, width=4, stem_stride=stride) for stride in (1, 2))
    two.load_state_dict(one.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert not torch.equal(one.eval()(x), two.eval()(x))


@NETS
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_all_maps_shrink_by_it(cls, stride):
    net, sizes = cls(in_channels=3, width=4, stem_stride=stride).eval(), []
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[-1]))
    net(torch.rand(1, 3, 24, 24))
    assert sizes[0] == 24 // stride
    assert max(sizes) == sizes[0]


@NETS
def test_a_stride_below_one_is_refused(cls):
    with pytest.raises(ValueError, match=r"stem_stride=0.*--model\.net\.stem_stride 2"):
        cls(stem_stride=0)
