"""Importance of channels against closed forms, autograd and differences."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_paf.nn.channel_gate import ChannelGate, FixedGate, gates, mask_gradients, recorded_probes

PROBES = pytest.mark.parametrize("probe", ["linear", "mlp"])


def gate(probe="linear", **options):
    torch.manual_seed(0)
    found = ChannelGate(6, 5, probe, **options).double()
    for parameter in found.parameters():
        nn.init.normal_(parameter)
    return found.eval()


def features():
    return torch.randn(7, 6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def labels():
    return torch.arange(7) % 5


def importance(found, z, y=None):
    """Importance by the ratio of output and input."""
    with found.recording(y):
        ratio = found(z) / z
    assert torch.allclose(ratio, ratio[:, :, :1, :1])
    return ratio[:, :, 0, 0]


def top2(found, z, y=None):
    p = found.probe(z.mean((2, 3)))
    first, second = p.topk(2, dim=1).indices.T
    return (first if y is None else y), second


@PROBES
def test_the_importance_is_a_distribution_over_the_channels(probe):
    m = importance(gate(probe), features())
    assert m.shape == (7, 6)
    assert (m >= 0).all()
    torch.testing.assert_close(m.sum(1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("labelled", [False, True])
def test_a_linear_probe_has_the_softmax_of_its_weights(labelled):
    found, z = gate(), features()
    y = labels() if labelled else None
    first, second = top2(found.train(labelled), z, y)
    expected = (found.probe.weight[first] + found.probe.weight[second]).softmax(1)
    torch.testing.assert_close(importance(found, z, y), expected, atol=1e-6, rtol=0)


def test_the_second_class_can_be_the_label():
    found, z = gate().train(), features()
    y = top2(found, z)[1]
    torch.testing.assert_close(importance(found, z, y), (2 * found.probe.weight[y]).softmax(1))


@PROBES
@pytest.mark.parametrize("labelled", [False, True])
def test_the_relevance_is_the_gradient_of_the_probe_with_all_its_derivatives(probe, labelled):
    """Against autograd with a second derivative, for the mask and for the weights of the probe."""
    found, z = gate(probe).train(labelled), features()
    y = labels() if labelled else None
    detached = z.clone().requires_grad_()
    p = found.probe(detached.mean((2, 3)))
    chosen = p.gather(1, torch.stack(top2(found, z, y), 1)).sum()
    (g,) = torch.autograd.grad(chosen, detached, create_graph=True)
    expected = g.sum((2, 3)).softmax(1)
    found_m = importance(found, z, y)
    torch.testing.assert_close(found_m, expected)
    cotangent = torch.randn_like(expected)
    weights = [w for w in found.parameters() if w.dim() > 1]
    wanted = torch.autograd.grad(expected, weights, cotangent, allow_unused=True)
    for ours, theirs in zip(torch.autograd.grad(found_m, weights, cotangent), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_relevance_of_an_mlp_is_that_of_finite_differences():
    found, z, step = gate("mlp"), features()[:1], 1e-6
    first, second = top2(found, z)

    def score(z):
        p = found.probe(z.mean((2, 3)))[0]
        return p[first] + p[second]

    with torch.no_grad():
        slopes = []
        for channel in range(6):
            change = torch.zeros_like(z)
            change[:, channel] = step
            slopes.append((score(z + change) - score(z - change)) / (2 * step))
    # A shift of the whole channel is the sum of the gradient over its pixels.
    expected = torch.cat(slopes)[None].softmax(1)
    torch.testing.assert_close(importance(found, z), expected, atol=1e-7, rtol=1e-7)


@PROBES
def test_gradients_reach_the_probe_but_not_the_features_through_the_importance(probe):
    found, z = gate(probe).train(), features().requires_grad_()
    pooled = z.mean((2, 3))
    total = (found.importance(pooled, found.probe(pooled)) * torch.randn(6)).sum()
    assert torch.autograd.grad(total, z, retain_graph=True, allow_unused=True) == (None,)
    gradients = torch.autograd.grad(total, [*found.parameters()])
    assert all((g != 0).any() for w, g in zip(found.parameters(), gradients, strict=True) if w.dim() > 1)
    assert (gradients[-1] == 0).all(), "the bias only has a gradient because DDP requires one"


@PROBES
def test_the_gradient_of_the_mask_is_that_of_differences(probe):
    """A linear probe has none: its importance depends on the features through the classes only."""
    found, z = gate(probe), features().requires_grad_()
    cotangent = torch.randn(7, 6, 3, 4, dtype=torch.float64)
    with mask_gradients(found):
        (full,) = torch.autograd.grad(found(z), z, cotangent)
    (masked,) = torch.autograd.grad(found(z), z, cotangent)
    direction, step = torch.randn_like(z), 1e-6
    with torch.no_grad():
        difference = ((found(z + step * direction) - found(z - step * direction)) * cotangent).sum() / (2 * step)
    torch.testing.assert_close((full * direction).sum(), difference, rtol=1e-6, atol=1e-6)
    assert torch.allclose(full, masked) == (probe == "linear")
    assert not found.mask_grad


@PROBES
def test_a_probe_without_preference_weights_all_channels_equally(probe):
    found, z = gate(probe).float(), features().float()
    last = found.probe if probe == "linear" else found.probe.hidden
    last.weight.data = last.weight.data[:, :1].expand(-1, 6).clone()
    torch.testing.assert_close(importance(found, z), torch.full((7, 6), 1 / 6), atol=1e-6, rtol=0)


@PROBES
def test_labels_have_no_effect_in_evaluation(probe):
    found, z = gate(probe), features()
    with found.recording(labels()):
        assert torch.equal(found(z), gate(probe)(z))
    with found.train().recording(labels()):
        assert not torch.equal(found(z), gate(probe)(z))


@pytest.mark.parametrize(
    ("name", "function"),
    [("sigmoid", torch.sigmoid), ("softplus", F.softplus), ("identity", lambda g: g)],
)
@pytest.mark.parametrize("topk", [1, 3, 5])
def test_other_importances_and_numbers_of_classes(name, function, topk):
    found, z = gate(importance=name, topk=topk, scale=6.0), features()
    classes = found.probe(z.mean((2, 3))).topk(topk, dim=1).indices
    expected = 6 * function(found.probe.weight[classes].sum(1))
    torch.testing.assert_close(importance(found, z), expected)
    assert (expected >= 0).all() or name == "identity"


def test_probes_are_recorded_per_pass_and_forgotten():
    net, z = nn.Sequential(gate(), gate("mlp"), FixedGate(6)), features()
    with recorded_probes(net) as collected:
        net(z)
        first = collected()
        net(z + 1)
        second = collected()
        assert collected() == ()
    torch.testing.assert_close(first[0], net[0].probe(z.mean((2, 3))))
    assert [len(first), len(second)] == [2, 2]
    assert not torch.equal(first[0], second[0])
    assert gates(net) == [net[0], net[1]]
    copy.deepcopy(net)


def test_a_fixed_gate_has_the_same_importance_for_all_images():
    torch.manual_seed(0)
    found, z = FixedGate(6, scale=3.0), features().float()
    torch.testing.assert_close(importance_of_fixed(found, z), found.importance.expand(7, 6))
    torch.testing.assert_close(found.importance.sum(), torch.tensor(3.0))
    assert "importance" in found.state_dict()
    assert not [*found.parameters()]


def importance_of_fixed(found, z):
    return (found(z) / z)[:, :, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0}, r"topk must be from 1 to the 5 classes, got 0\. Pass --model\.net\.topk 2"),
        ({"topk": 6}, "topk must be from 1 to the 5 classes, got 6"),
        ({"scale": 0.0}, "scale must be finite and > 0, got 0"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"probe": "tree"}, "probe must be linear or mlp, got 'tree'"),
        ({"importance": "relu"}, "importance must be softmax, sigmoid, softplus, identity, got 'relu'"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ChannelGate(**{"channels": 6, "num_classes": 5, **options})
