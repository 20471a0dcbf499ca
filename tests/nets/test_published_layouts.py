"""State-dict keys, parameter counts and arithmetic of the networks that load published weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_paf.nets import VGG16BN, CifarResNet, DMPreActResNet, DMWideResNet, PreActResNet, WideResNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def bn(*names):
    return {f"{name}.{field}" for name in names for field in BN}


def act(*names):
    return {f"{name}.{field}" for name in names for field in ("beta", "alpha")}


def parameters(make):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def blocks(paths, count, convolutions, norms, activations):
    """Keys of `count` residual blocks below each path."""
    keys = set()
    for at in (f"{path}.{number}" for path in paths for number in range(count)):
        keys |= {f"{at}.{name}.weight" for name in convolutions} | bn(*(f"{at}.{name}" for name in norms))
        keys |= act(*(f"{at}.{name}" for name in activations))
    return keys


def resnet18_keys():
    keys = {"conv1.weight", "fc.weight", "fc.bias"} | bn("bn1") | act("activation")
    keys |= blocks([f"layer{n}" for n in (1, 2, 3, 4)], 2, ("conv1", "conv2"), ("bn1", "bn2"), ("activation",))
    for stage in (2, 3, 4):
        keys |= {f"layer{stage}.0.downsample.0.weight"} | bn(f"layer{stage}.0.downsample.1")
    return keys


def wrn_keys(count):
    keys = {"conv1.weight", "fc.weight", "fc.bias"} | bn("bn1") | act("activation")
    groups = [f"block{n}.layer" for n in (1, 2, 3)]
    keys |= blocks(groups, count, ("conv1", "conv2"), ("bn1", "bn2"), ("activation",))
    return keys | {f"{group}.0.convShortcut.weight" for group in groups}


def vgg_keys():
    keys = bn(*(f"features.{i}" for i in (1, 4, 8, 11, 15, 18, 21, 25, 28, 31, 35, 38, 41)))
    layers = [f"features.{i}" for i in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)]
    layers += [f"classifier.{i}" for i in (1, 4, 6)]
    keys |= {f"{layer}.{field}" for layer in layers for field in ("weight", "bias")}
    keys |= act(*(f"features.{i}" for i in (2, 5, 9, 12, 16, 19, 22, 26, 29, 32, 36, 39, 42)))
    return keys | act("classifier.2", "classifier.5")


def dm_wrn_keys(count):
    keys = {"init_conv.weight", "logits.weight", "logits.bias"} | bn("batchnorm") | act("relu")
    groups, norms = [f"layer.{n}.block" for n in (0, 1, 2)], ("batchnorm_0", "batchnorm_1")
    keys |= blocks(groups, count, ("conv_0", "conv_1"), norms, ("relu_0", "relu_1"))
    return keys | {f"{group}.0.shortcut.weight" for group in groups}


def dm_preact_keys():
    keys = {"conv_2d.weight", "logits.weight", "logits.bias"} | bn("batchnorm") | act("relu")
    stages, norms = [f"layer_{n}" for n in (0, 1, 2, 3)], ("batchnorm_0", "batchnorm_1")
    keys |= blocks(stages, 2, ("conv_2d_1", "conv_2d_2"), norms, ("relu_0", "relu_1"))
    return keys | {f"{stage}.0.shortcut.weight" for stage in stages[1:]}


LAYOUTS = {
    "resnet18": (CifarResNet, resnet18_keys(), 9),
    "wrn_28_10": (WideResNet, wrn_keys(4), 13),
    "wrn_34_20": (lambda: WideResNet(34, 20), wrn_keys(5), 16),
    "vgg16_bn": (VGG16BN, vgg_keys(), 15),
    "dm_wrn_28_10": (DMWideResNet, dm_wrn_keys(4), 25),
    "dm_preact18": (DMPreActResNet, dm_preact_keys(), 17),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_keys_with_one_shared_activation_are_those_of_the_published_checkpoints(name):
    make, expected, count = LAYOUTS[name]
    with torch.device("meta"):
        net = make()
        plain = sum(parameter.numel() for parameter in net.parameters())
        assert swap_activations(net, PSSiLU) == count
    assert set(net.state_dict()) == expected
    assert sum(key.endswith((".beta", ".alpha")) for key in net.state_dict()) == 2 * count
    assert sum(parameter.numel() for parameter in net.parameters()) == plain + 2


def test_shared_activation_comes_first_in_the_checkpoint_of_resnet18():
    net = CifarResNet(width=2)
    swap_activations(net, PSSiLU)
    assert list(net.state_dict())[:3] == ["activation.beta", "activation.alpha", "conv1.weight"]


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (CifarResNet, 11_173_962),
        (lambda: CifarResNet(num_classes=100), 11_220_132),
        (lambda: CifarResNet(stem="imagenet"), 11_181_642),
        (VGG16BN, 15_253_578),
        (PreActResNet, 11_172_170),
        (WideResNet, 36_479_194),
        (lambda: WideResNet(num_classes=100), 36_536_884),
        (lambda: WideResNet(34, 10), 46_160_474),
        (lambda: WideResNet(70, 16), 266_796_506),
        (DMWideResNet, 36_479_194),
        (lambda: DMWideResNet(82, 8), 79_125_466),
        (lambda: DMWideResNet(94, 16), 365_915_610),
        # PreActResNet-18 with its three 1x1 shortcuts replaced by 3x3 ones: 8 more weights per pair of channels.
        (DMPreActResNet, 11_172_170 + 8 * (64 * 128 + 128 * 256 + 256 * 512)),
    ],
)
def test_parameter_counts(make, count):
    assert parameters(make) == count


def test_resnet34_has_the_parameters_of_torchvision_but_for_the_stem_and_the_classes():
    from torchvision.models import resnet34

    theirs = parameters(resnet34) - 3 * 64 * (49 - 9) - 513 * 990
    assert parameters(lambda: CifarResNet(depth=34)) == theirs


def randomised(net):
    """Give batch norm something to do, then evaluate in double precision."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return net.double().eval()


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_resnet18_computes_what_torchvision_computes(stem):
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=10)
    if stem == "cifar":
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs, ours = randomised(theirs), CifarResNet(stem=stem).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 32, 32, dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x))


def test_vgg_features_compute_what_torchvision_computes():
    from torchvision.models import vgg16_bn

    ours = randomised(VGG16BN())
    with torch.device("meta"):
        theirs = vgg16_bn(num_classes=2).features.double().eval()
    theirs.load_state_dict(ours.features.state_dict(), assign=True)
    x = torch.rand(1, 3, 32, 32, dtype=torch.double)
    torch.testing.assert_close(ours(x), ours.classifier(theirs(x).flatten(1)))


def norm(state, name, x):
    weight, bias, mean, var = (state[f"{name}.{field}"] for field in BN[:4])
    return F.batch_norm(x, mean, var, weight, bias)


def test_wide_resnet_computes_the_formula():
    net = randomised(WideResNet(depth=10, width=2))
    state, x = net.state_dict(), torch.rand(2, 3, 16, 16, dtype=torch.double)
    z = F.conv2d(x, state["conv1.weight"], padding=1)
    for group, stride in ((1, 1), (2, 2), (3, 2)):
        at = f"block{group}.layer.0"
        a = F.relu(norm(state, f"{at}.bn1", z))
        shortcut = F.conv2d(a, state[f"{at}.convShortcut.weight"], stride=stride)
        a = F.conv2d(a, state[f"{at}.conv1.weight"], stride=stride, padding=1)
        z = shortcut + F.conv2d(F.relu(norm(state, f"{at}.bn2", a)), state[f"{at}.conv2.weight"], padding=1)
    features = F.relu(norm(state, "bn1", z)).mean(dim=(2, 3))
    torch.testing.assert_close(net(x), features @ state["fc.weight"].T + state["fc.bias"])


def test_dm_wide_resnet_computes_the_formula():
    net = randomised(DMWideResNet(depth=10, width=1, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    state, x = net.state_dict(), torch.rand(2, 3, 16, 16, dtype=torch.double)
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    z = F.conv2d((x - mean) / std, state["init_conv.weight"], padding=1)
    for group, stride in ((0, 1), (1, 2), (2, 2)):
        at = f"layer.{group}.block.0"
        a = F.silu(norm(state, f"{at}.batchnorm_0", z))
        # At width 1 the first group keeps its 16 channels and adds its unchanged input.
        shortcut = z if group == 0 else F.conv2d(a, state[f"{at}.shortcut.weight"], stride=stride)
        padded = F.pad(a, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
        a = F.silu(norm(state, f"{at}.batchnorm_1", F.conv2d(padded, state[f"{at}.conv_0.weight"], stride=stride)))
        z = shortcut + F.conv2d(a, state[f"{at}.conv_1.weight"], padding=1)
    features = F.silu(norm(state, "batchnorm", z)).mean(dim=(2, 3))
    torch.testing.assert_close(net(x), features @ state["logits.weight"].T + state["logits.bias"])
    assert not {"mean", "std"} & {key.rsplit(".", 1)[-1] for key in state}


def test_preact_shortcut_projects_the_activation_and_the_dm_one_the_input():
    x = torch.randn(1, 2, 8, 8, dtype=torch.double)
    for shortcut in ("activated", "raw"):
        block = randomised(PreActResNet(width=2, shortcut=shortcut).layer2[0])
        nn.init.zeros_(block.conv2.weight)
        source = x if shortcut == "raw" else F.relu(norm(block.state_dict(), "bn1", x))
        torch.testing.assert_close(block(x), F.conv2d(source, block.shortcut[0].weight, stride=2))

    block = randomised(DMPreActResNet(width=2).layer_1[0])
    nn.init.zeros_(block.conv_2d_2.weight)
    torch.testing.assert_close(block(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), block.shortcut.weight, stride=2))
