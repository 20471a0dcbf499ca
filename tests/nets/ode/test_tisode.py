"""TisODE, ODENet, their baseline, and ResNets with an ODE stage."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_paf.nets import (
    CifarResNet,
    DMPreActResNet,
    DMWideResNet,
    LastStageODE,
    LeNet,
    ODENet,
    PreActResNet,
    ResidualCNN,
    SmallConvNet,
    TisODENet,
    WideResNet,
)
from lightning_paf.nets.ode.block import ODEBlock
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.swap import swap_activations
from lightning_paf.specs import DatasetSpec, dataset_spec

SMALL = {"width": 4, "groups": 2}


def test_parameter_counts_are_those_of_the_paper():
    counts = {cls: sum(p.numel() for p in cls().parameters()) for cls in (ResidualCNN, ODENet, TisODENet)}
    assert counts == {ResidualCNN: 141_130, ODENet: 142_410, TisODENet: 141_130}


def test_settings_are_those_of_the_paper():
    settings = [(net.block.step, net.block.t_end, net.block.solver) for net in (TisODENet(), ODENet())]
    assert settings == [(0.05, 1.0, "euler"), (0.1, 1.0, "euler")]
    assert TisODENet().stem(torch.rand(1, 1, 28, 28)).shape == (1, 64, 13, 13)


def test_time_has_an_effect_on_the_vanilla_field_only():
    torch.manual_seed(0)
    z = torch.randn(1, 4, 5, 5)
    for net, same in ((TisODENet(**SMALL), True), (ODENet(**SMALL), False)):
        at = [net.block.field(torch.tensor(t), z) for t in (0.0, 0.3, 7.0)]
        assert torch.equal(at[0], at[1]) == torch.equal(at[0], at[2]) == same


def test_one_euler_step_of_length_one_is_the_residual_network():
    torch.manual_seed(0)
    ode, cnn, x = TisODENet(step=1.0, **SMALL), ResidualCNN(**SMALL), torch.rand(3, 1, 9, 9)
    cnn.load_state_dict({key.replace("block.field", "field"): value for key, value in ode.state_dict().items()})
    assert torch.equal(ode(x), cnn(x))


@pytest.mark.parametrize(("cls", "steps"), [(TisODENet, 20), (ODENet, 10)])
def test_logits_are_those_of_the_equations(cls, steps):
    """Float64, with functions only."""
    torch.manual_seed(0)
    net, x = cls(**SMALL).double(), torch.rand(2, 1, 9, 9, dtype=torch.float64)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    w = net.state_dict()

    def norm(z, name):
        return F.relu(F.group_norm(z, 2, w[f"{name}.weight"], w[f"{name}.bias"]))

    def velocity(t, z):
        for i in (1, 2):
            if cls is ODENet:
                z = torch.cat([torch.full_like(z[:, :1], t), z], dim=1)
                z = F.conv2d(z, w[f"block.field.conv{i}.conv.weight"], w[f"block.field.conv{i}.conv.bias"], padding=1)
            else:
                z = F.conv2d(z, w[f"block.field.conv{i}.weight"], padding=1)
            z = norm(z, f"block.field.norm{i}")
        return z

    z = norm(F.conv2d(x, w["stem.0.weight"], w["stem.0.bias"]), "stem.1")
    z = norm(F.conv2d(z, w["stem.3.weight"], w["stem.3.bias"], stride=2, padding=1), "stem.4")
    for k in range(steps):
        z = z + velocity(k / steps, z) / steps
    expected = z.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    torch.testing.assert_close(net(x), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("groups", [3, 0, 8])
@pytest.mark.parametrize("cls", [ResidualCNN, ODENet, TisODENet])
def test_groups_that_do_not_divide_the_channels_are_refused(cls, groups):
    with pytest.raises(ValueError, match=rf"groups must divide the 4 channels .*got {groups}\. Pass --model\.net\.gr"):
        cls(width=4, groups=groups)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="Images must have at least 4 x 4 pixels for TisODENet, got 3 x 3"):
        Classifier(TisODENet(**SMALL), DatasetSpec("tiny", 10, 3, (0.5,), (0.25,)))


RESNETS = [
    lambda: CifarResNet(width=4),
    lambda: PreActResNet(width=4),
    lambda: DMPreActResNet(width=4),
    lambda: WideResNet(depth=10, width=1),
    lambda: DMWideResNet(depth=16, width=1),
]


@pytest.mark.parametrize("make", RESNETS)
@pytest.mark.parametrize("time_invariant", [True, False])
def test_the_last_stage_of_a_resnet_is_an_ode(make, time_invariant):
    torch.manual_seed(0)
    original = make()
    first = [name for name, _ in original.named_modules() if name.endswith(".0")][-1]
    kept = sum(p.numel() for p in original.get_submodule(first).parameters())
    net = LastStageODE(original, time_invariant=time_invariant, groups=4, step=0.5)
    (block,) = (module for module in net.modules() if isinstance(module, ODEBlock))
    assert sum(p.numel() for p in net.net.get_submodule(first).parameters()) == kept
    assert swap_activations(net, PSSiLU) > 3
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    net(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net.get_classifier().out_features == 10
    with block.recording(1.0, 2.0) as records:
        net(x)
    assert len(records) == 1
    assert Classifier(net, dataset_spec("cifar10")).num_features == block.field.norm1.num_channels


@pytest.mark.parametrize("make", [lambda: SmallConvNet(width=4), LeNet])
def test_networks_without_residual_stages_are_refused(make):
    with pytest.raises(ValueError, match=r"net must be a ResNet .*--model\.net\.net CifarResNet"):
        LastStageODE(make())
