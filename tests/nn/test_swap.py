"""Swapping activations in small networks, and in families of timm and torchvision."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_paf.nn.activations import PReLU, PSiLU, PSSiLU, ReLU
from lightning_paf.nn.swap import swap_activations

X = torch.zeros(1, 3, 4, 4)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.act1 = nn.ReLU(inplace=True)
        self.act2 = nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act2(x + self.conv(self.act1(x)))


class Net(nn.Module):
    """A stem with an activation and two stages; `alias` is a second name of the stem's activation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.act = nn.ReLU()
        self.alias = self.act
        self.stage1 = nn.Sequential(Block(4), Block(4))
        self.stage2 = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 6, 1), Block(6))])
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.stage2[0](self.stage1(self.act(self.stem(x))))
        return self.head(self.alias(x).mean((2, 3)))


class Functional(nn.Module):
    def forward(self, x):
        return F.relu(x)


def activations(net, kind=PSSiLU):
    """Distinct activation objects, in order."""
    return [module for module in net.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(("scope", "objects"), [("network", 1), ("stage", 4), ("module", 8)])
def test_scopes_differ_in_the_number_of_objects(scope, objects):
    net = Net()
    assert swap_activations(net, PSSiLU, scope=scope) == 8
    assert len(activations(net)) == len(activations(copy.deepcopy(net))) == objects
    assert sum(key.endswith("alpha") for key in net.state_dict()) == 8
    assert not any(isinstance(module, nn.ReLU | nn.SiLU) for module in net.modules())
    net(torch.randn(2, 3, 4, 4)).sum().backward()
    assert all(activation.alpha.grad is not None for activation in activations(net))


def test_a_stage_is_a_child_of_the_innermost_container_of_all_targets():
    net = Net()
    swap_activations(net, PSSiLU, scope="stage")
    assert net.stage1[0].act1 is net.stage1[1].act2
    assert net.stage1[0].act1 is not net.stage2[0][1].act1
    assert net.act is not net.alias  # two children, although they held the same object

    wrapped = nn.Sequential(nn.Sequential(nn.Sequential(Block(2), Block(2)), nn.Sequential(Block(2)), nn.Identity()))
    swap_activations(wrapped, PSSiLU, scope="stage")
    assert len(activations(wrapped)) == 2

    flat = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
    swap_activations(flat, PSSiLU, scope="stage")
    assert len(activations(flat)) == 2

    single = nn.Sequential(nn.Sequential(nn.ReLU()))
    assert swap_activations(single, PSSiLU, scope="stage") == 1


def test_children_of_a_shared_module_are_swapped_once():
    block = Block(3)
    net = nn.Sequential(block, block)
    assert swap_activations(net, PSSiLU, scope="module") == 2
    assert len(activations(net)) == 2


def test_parameters_per_channel():
    net, x = Net(), torch.randn(2, 3, 5, 5)
    assert swap_activations(net, lambda: PSiLU(2.0), scope="channel", example=x[:1]) == 8
    assert [tuple(a.alpha.shape) for a in activations(net, PSiLU)] == [(4,)] + [(6,)] + [(4,)] * 4 + [(6,)] * 2
    same = Net()
    same.load_state_dict(net.state_dict(), strict=False)
    swap_activations(same, lambda: PSiLU(2.0))
    torch.testing.assert_close(net(x), same(x))


def test_channels_last_is_distinguished_from_channels_first():
    class Last(nn.Sequential):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1))

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Last(nn.Linear(4, 7), nn.GELU()))
    swap_activations(net, PSSiLU, scope="channel", example=torch.zeros(1, 3, 5, 6))
    assert [(a.alpha.numel(), a.channel_dim) for a in activations(net)] == [(4, 1), (7, -1)]
    assert net(torch.zeros(2, 3, 8, 9)).shape == (2, 8, 9, 7)  # another size than the example's


def test_counting_channels_changes_no_flags_and_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())
    net[3].eval()
    before = copy.deepcopy(net[1].state_dict())
    swap_activations(net, PSSiLU, scope="channel", example=torch.randn(2, 3, 5, 5))
    torch.testing.assert_close(net[1].state_dict(), before)
    assert [module.training for module in net] == [True, True, True, False]
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not net[0]._forward_hooks


class Bottleneck(nn.Module):
    def __init__(self, relu=nn.ReLU):
        super().__init__()
        self.widen = nn.Conv2d(3, 6, 1)
        self.relu = relu()
        self.unused = nn.ReLU()

    def forward(self, x):
        return self.relu(self.widen(self.relu(x)))


@pytest.mark.parametrize(
    ("net", "make", "options", "message"),
    [
        (Net(), PSSiLU, {"scope": "layer"}, "scope must be network, stage, module or channel, got 'layer'"),
        (Net(), PSSiLU, {"scope": "channel"}, "example must be an input batch .*, got None"),
        (Net(), ReLU, {"scope": "channel", "example": X}, "activation must be parametric .*, got ReLU"),
        (
            Bottleneck(),
            PSSiLU,
            {"scope": "channel", "example": X},
            "'relu' of Bottleneck must have one number of channels .*, got 3 and 6. Pass scope='module'",
        ),
        (Bottleneck(nn.Identity), PSSiLU, {"scope": "channel", "example": X}, "'unused' of Bottleneck .* got none"),
        (Functional(), PSSiLU, {}, "Functional must have a module of .*, got none; .* F.relu.* TimmNet"),
        (nn.Sequential(nn.ReLU6()), PSSiLU, {}, "got ReLU6. Pass targets="),
    ],
)
def test_errors_change_nothing(net, make, options, message):
    keys, layers = list(net.state_dict()), [type(module) for module in net.modules()]
    with pytest.raises(ValueError, match=message):
        swap_activations(net, make, **options)
    assert list(net.state_dict()) == keys
    assert [type(module) for module in net.modules()] == layers


def test_a_network_can_be_swapped_again():
    net = Net()
    swap_activations(net, PSSiLU)
    assert swap_activations(net, PReLU, scope="module") == 8
    assert not activations(net)
    assert len(activations(net, PReLU)) == 8


def test_targets_include_subclasses_and_classes_of_the_same_name():
    class Special(nn.ReLU):
        pass

    class GELU(nn.Module):  # as in timm
        def forward(self, x):
            return F.gelu(x)

    def net():
        return nn.Sequential(Special(), GELU(), nn.Sigmoid(), nn.ReLU6(), nn.SiLU())

    assert swap_activations(net(), PSSiLU) == 3
    assert swap_activations(net(), PSSiLU, targets=(nn.ReLU6,)) == 1
    assert swap_activations(net(), PSSiLU, targets=(nn.GELU, nn.Sigmoid)) == 2


def test_replacements_can_be_any_module_and_take_training_flag_and_device():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    swap_activations(net, nn.PReLU)
    assert isinstance(net[1], nn.PReLU)
    assert not net[1].training
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}


# ---- families; on the meta device, where networks take no memory


def timm_net(name, **kwargs):
    import timm

    return timm.create_model(name, pretrained=False, **kwargs)


def torchvision_net(name, **kwargs):
    import torchvision

    return torchvision.models.get_model(name, weights=None, **kwargs)


MORE = {"mobilenetv3_small_050": (nn.ReLU, nn.Hardswish)}


@pytest.mark.parametrize(
    ("build", "name", "count", "stages"),
    [
        (timm_net, "test_resnet", 12, 6),
        (partial(timm_net, layers=(1, 1, 1, 1)), "resnetv2_50", 13, 2),
        (timm_net, "vgg11_bn", 10, 2),
        (timm_net, "test_convnext", 9, 4),  # with GELUTanh
        (timm_net, "test_efficientnet", 11, 3),
        (timm_net, "test_vit", 6, 6),
        (timm_net, "mobilenetv3_small_050", 33, 3),
        (partial(timm_net, block_config=(2, 2, 2, 2)), "densenet121", 21, 9),
        (torchvision_net, "resnet18", 9, 5),  # each block has one nn.ReLU and calls it twice
        (torchvision_net, "swin_t", 12, 4),
    ],
)
def test_families(build, name, count, stages):
    with torch.device("meta"):
        net = build(name)
    targets = {"targets": MORE[name]} if name in MORE else {}
    assert swap_activations(net, PSSiLU, scope="stage", **targets) == count
    assert len(activations(net)) == stages
    assert swap_activations(net, PSSiLU) == count
    assert len(activations(net)) == 1
    example = torch.zeros(1, 3, 160, 160, device="meta")
    assert swap_activations(net, PSSiLU, scope="channel", example=example) == count
    assert net(example).shape == (1, 1000)


@pytest.mark.parametrize(
    ("build", "name", "kwargs"),
    [
        (timm_net, "resnet10t", {}),
        (timm_net, "test_convnext", {}),
        (timm_net, "test_efficientnet", {"act_layer": "silu"}),
        (timm_net, "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
        (torchvision_net, "squeezenet1_1", {}),
    ],
)
def test_families_have_gradients_for_alpha_and_beta(build, name, kwargs):
    net = build(name, num_classes=3, **kwargs).eval()
    swap_activations(net, PSSiLU)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    F.cross_entropy(net(x), torch.tensor([0, 1])).backward()
    (activation,) = activations(net)
    for gradient in (x.grad, activation.alpha.grad, activation.beta.grad):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_call_functions_are_refused(name):
    with torch.device("meta"):
        net = torchvision_net(name, init_weights=False)
    with pytest.raises(ValueError, match=f"{type(net).__name__} must have a module of "):
        swap_activations(net, PSSiLU)
