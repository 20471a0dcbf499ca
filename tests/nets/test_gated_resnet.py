"""CIFS: its logits, size and place of the gates."""

import pytest
import torch
import torch.nn.functional as F
from helpers.fakes import spec
from helpers.originals import randomised
from torch import nn

from lightning_paf.nets import CifarResNet, GatedResNet, PreActResNet, SmallConvNet, WideResNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.channel_gate import ChannelGate, FixedGate, gates
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.swap import swap_activations

LAYERS = ["features.5", "features.7"]


def small(**options):
    torch.manual_seed(0)
    return GatedResNet(SmallConvNet(3, width=4), layers=LAYERS, **options)


def images(n=4):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_numbers_of_parameters():
    plain, gated = (sum(p.numel() for p in net.parameters()) for net in (CifarResNet(), GatedResNet(CifarResNet())))
    assert plain == 11_173_962
    assert gated == plain + (512 * 128 + 128 + 128 * 10 + 10) + (512 * 10 + 10) == 11_246_046


def test_gates_follow_both_blocks_of_the_last_stage_with_an_mlp_first():
    net = GatedResNet(CifarResNet(width=4))
    found = {path: module for path, module in net.named_modules() if module in gates(net)}
    assert list(found) == ["net.layer4.0.1", "net.layer4.1.1"]
    assert [type(gate.probe).__name__ for gate in found.values()] == ["MLPProbe", "LinearProbe"]


@pytest.mark.parametrize("make", [lambda: PreActResNet(width=4), lambda: WideResNet(depth=16, width=1)])
def test_other_resnets_have_gates_too(make):
    net = GatedResNet(make()).eval()
    assert [gate.probe.weight.shape[1] for gate in gates(net)[1:]] == [net.get_classifier().in_features]
    assert net(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def test_with_importances_of_one_it_is_the_plain_network(monkeypatch):
    plain = randomised(CifarResNet(width=4)).eval()
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    x = torch.rand(3, 3, 16, 16)
    expected = plain(x)
    net = GatedResNet(plain).eval()
    assert not torch.allclose(net(x), expected, rtol=1e-3)
    for gate in gates(net):
        monkeypatch.setattr(gate, "importance", lambda pooled, *_: torch.ones_like(pooled))
    assert torch.equal(net(x), expected)
    again = CifarResNet(width=4).eval()
    again.load_state_dict(state)
    assert torch.equal(again(x), expected)


@pytest.mark.parametrize("layers", [["features", "features.5"], ["features.5", "features"]])
def test_layers_can_contain_each_other(layers):
    net = GatedResNet(SmallConvNet(3, width=4), layers=layers, probes=["linear", "random"])
    found = [path for path, module in net.named_modules() if isinstance(module, ChannelGate | FixedGate)]
    assert found == ["net.features.0.5.1", "net.features.1"]
    assert isinstance(net.get_submodule(found[layers.index("features")]), FixedGate)
    logits, (probe,) = net.forward_aux(images())
    assert logits.shape == probe.shape == (4, 10)


@pytest.mark.parametrize("labelled", [False, True])
def test_logits_and_probes_are_those_of_the_equations(labelled):
    """Float64, with functions and autograd only."""
    net, x = small().double().train(labelled), images().double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    y = torch.tensor([3, 1, 4, 1])
    w = {key.removeprefix("net."): value for key, value in net.state_dict().items()}

    def conv(z, name, stride=1):
        return F.relu(F.conv2d(z, w[f"features.{name}.weight"], w[f"features.{name}.bias"], stride, padding=1))

    def gated(z, name, probe):
        p = probe(z.mean((2, 3)), f"features.{name}.1.probe")
        copy = z.detach().requires_grad_()
        q = probe(copy.mean((2, 3)), f"features.{name}.1.probe")
        ranked = q.argsort(1, descending=True)
        first = y if labelled else ranked[:, 0]
        score = q[range(4), first].sum() + q[range(4), ranked[:, 1]].sum()
        (g,) = torch.autograd.grad(score, copy)
        return z * torch.softmax(g.sum((2, 3)), 1)[:, :, None, None], p

    def mlp(u, name):
        hidden = u @ w[f"{name}.hidden.weight"].T + w[f"{name}.hidden.bias"]
        return (1 + (5 * hidden).exp()).log() / 5 @ w[f"{name}.out.weight"].T + w[f"{name}.out.bias"]

    def linear(u, name):
        return u @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    z = conv(conv(x, "0"), "2")
    z, p1 = gated(F.relu(F.conv2d(z, w["features.4.weight"], w["features.4.bias"], 2, 1)), "5", mlp)
    z, p2 = gated(conv(z, "6"), "7", linear)
    expected = F.adaptive_avg_pool2d(z, 4).flatten(1) @ w["fc.weight"].T + w["fc.bias"]
    logits, probes = net.forward_aux(x, y)
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(list(probes), [p1, p2], atol=1e-10, rtol=1e-10)


def test_labels_have_no_effect_in_evaluation():
    model, x, y = Classifier(small(importance="identity"), spec()).eval(), images(), torch.tensor([1, 2, 3, 4])
    assert torch.equal(model.outputs(x, y).logits, model(x))
    assert len(model.outputs(x).aux) == 2
    trained = model.train().outputs(x, y)
    assert not torch.equal(trained.logits, model(x))
    soft = model.outputs(x, F.one_hot(y, 10).float())
    assert torch.equal(soft.logits, trained.logits)


def test_the_random_gate_is_a_control_without_probes():
    net = small(probes=["random", "random"])
    assert net.forward_aux(images())[1] == ()
    plain = sum(p.numel() for p in SmallConvNet(3, width=4).parameters())
    assert sum(p.numel() for p in net.parameters()) == plain
    assert net.net.features[7][1].importance.shape == (8,)


def test_activations_are_replaced_before_gates():
    net = small()
    assert swap_activations(net, PSSiLU) == 4
    assert isinstance(net.net.features[7][0], PSSiLU)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (SmallConvNet, {}, r"net must be a ResNet .*got SmallConvNet"),
        (SmallConvNet, {"layers": ["features.5"]}, r"layers must be 2 different paths, .*got \['features.5'\]"),
        (SmallConvNet, {"layers": ["features.5"] * 2}, "layers must be 2 different paths"),
        (SmallConvNet, {"layers": ["features.5", "features.9"]}, "after a convolution, got 'features.9' in SmallConv"),
        (SmallConvNet, {"layers": [""], "probes": ["mlp"]}, "layers must be"),
        (SmallConvNet, {"layers": [], "probes": []}, "probes must hold at least one probe, got none"),
        (CifarResNet, {"probes": ["mlp"] * 3}, "last stage must have at least 3 blocks, .*got 2"),
        (CifarResNet, {"probes": ["tree", "mlp"]}, "probe must be linear or mlp, got 'tree'"),
        (CifarResNet, {"topk": 11}, "topk must be from 1 to the 10 classes, got 11"),
    ],
)
def test_invalid_arguments_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        GatedResNet(make(width=4), **options)
