"""ZeroSNet: steps of the scheme, histories and warnings."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_paf.functional.multistep import three_step_family
from lightning_paf.nets import ZeroSNet
from lightning_paf.speed.folding import Folding


def build(**options):
    torch.manual_seed(0)
    return ZeroSNet(**{"depth": 20, "width": 4} | options)


def without_field(net):
    """The same network with F = 0."""
    for block in net.blocks:
        nn.init.zeros_(block.conv2.weight)
    return net.eval()


def states_of(net, x, first=0, last=None):
    """The newest state after each block."""
    states, found = (x,), []
    for block in net.blocks[first:last]:
        states = block(states)
        found.append(states[0])
    return found


@pytest.mark.parametrize(("depth", "count"), [(20, 277_402), (56, 860_698), (110, 1_735_642)])
def test_parameter_counts(depth, count):
    """Those of the ResNet (He et al., 2016) without its norms in front, plus three projections per transition."""
    n = (depth - 2) // 6
    widths, resnet = (16, 32, 64), 27 * 16 + 64 * 10 + 10 + 2 * 64
    for stage, width in enumerate(widths):
        before = widths[max(stage - 1, 0)]
        resnet += 9 * before * width + 9 * width * width + 2 * before + 2 * width
        resnet += (n - 1) * (18 * width * width + 4 * width)
    assert sum(p.numel() for p in ZeroSNet(depth).parameters()) == resnet + 3 * (16 * 32 + 32 * 64) == count


def test_a_transition_has_three_distinct_projections():
    blocks = build().blocks
    assert [len(block.projections) for block in blocks] == [0, 0, 0, 3, 0, 0, 3, 0, 0]
    for block in (blocks[3], blocks[6]):
        assert len({id(projection.weight) for projection in block.projections}) == 3
        assert all(projection.stride == (2, 2) for projection in block.projections)
    states = tuple(torch.rand(2, 4, 8, 8) for _ in range(3))
    assert [state.shape for state in blocks[3](states)] == [(2, 8, 4, 4)] * 3


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_logits_are_those_of_the_equations(depth):
    """Float64, in eval mode, with functions only."""
    net, x = build(depth=depth, parameter=3.0).double().eval(), torch.rand(2, 3, 9, 9, dtype=torch.float64)
    for value in net.state_dict().values():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.1, 0.4)
    w, n = net.state_dict(), (depth - 2) // 6

    def norm(z, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(z, *(w[f"{name}.{key}"] for key in keys)))

    history = [F.conv2d(x, w["conv.weight"], padding=1)]
    for number in range(3 * n):
        stride = 2 if number and number % n == 0 else 1
        path = f"blocks.{number}"
        f = F.conv2d(norm(history[0], f"{path}.bn1"), w[f"{path}.conv1.weight"], stride=stride, padding=1)
        f = F.conv2d(norm(f, f"{path}.bn2"), w[f"{path}.conv2.weight"], padding=1)
        if stride == 2:
            history = [F.conv2d(z, w[f"{path}.projections.{i}.weight"], stride=2) for i, z in enumerate(history)]
        a0, a1, a2, b0 = three_step_family(3.0)
        new = history[0] + f if number < 2 else a0 * history[0] + a1 * history[1] + a2 * history[2] + b0 * f
        history = [new, *history][:3]
    expected = norm(history[0], "bn").mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    torch.testing.assert_close(net(x), expected)


def test_coefficients_of_a_resnet_give_its_residual_blocks():
    net, x = build(coefficients=[1, 0, 0, 1]).eval(), torch.randn(2, 4, 8, 8)
    z = x
    for block, found in zip(net.blocks[:3], states_of(net, x, last=3), strict=True):
        z = z + block.conv2(block.activation2(block.bn2(block.conv1(block.activation1(block.bn1(z))))))
        torch.testing.assert_close(found, z)


def test_without_field_the_states_of_a_stage_converge_or_grow():
    x0, x1, x2 = (torch.randn(1, 4, 4, 4, dtype=torch.float64) for _ in range(3))
    for parameter, factor in ((-1.8, 0.0), (-0.5, 1.8828)):
        net = without_field(build(depth=134, parameter=parameter)).double()
        states = (x2, x1, x0)
        norms = []
        for block in net.blocks[2:22]:
            states = block(states)
            norms.append(float(states[0].detach().norm()))
        if factor:
            assert norms[-1] / norms[-2] == pytest.approx(factor, rel=1e-4)
        else:
            torch.testing.assert_close(states[0], (x2 + 2 / 3 * x1 + 1 / 9 * x0) * 9 / 16)


def test_trainable_parameters_start_at_the_value_and_get_gradients():
    net = build(trainable=True, parameter=1.0)
    parameters = [block.parameter for block in net.blocks if block.parameter is not None]
    assert len(parameters) == 7
    assert net.coefficients() == [(1.5, -1.0, 0.5, 1.0)] * 7
    net(torch.rand(4, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad.abs() > 0 for parameter in parameters)
    assert len(build().coefficients()) == 7


@pytest.mark.parametrize("options", [{"trainable": True, "parameter": 1.0}, {"coefficients": [1, 0, 0, 1]}])
def test_other_coefficients_are_traced_for_the_fast_path(options):
    net, x = build(**options).eval(), torch.rand(3, 3, 8, 8)
    folding = Folding(net)
    folding.refresh()
    torch.testing.assert_close(folding.net(x), net(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parameter": -0.5}, "extraneous root has modulus 1.883"),
        ({"parameter": 0.2}, "not zero-stable"),
        (
            {"coefficients": [1, 1, 1, 1]},
            "first three sum to 3 (must be 1), and the largest extraneous root has modulus",
        ),
        ({"parameter": -0.5, "trainable": True}, "not zero-stable"),
    ],
)
def test_unstable_coefficients_raise_a_warning_with_the_largest_root(options, words, caplog):
    with caplog.at_level(logging.WARNING):
        build(**options)
    assert words in caplog.text


@pytest.mark.parametrize("options", [{}, {"parameter": -1.0}, {"trainable": True, "parameter": 1.0}])
def test_stable_coefficients_raise_none(options, caplog):
    build(**options)
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 18}, r"depth must be 6 n \+ 2 with n >= 1, got 18\. Pass --model\.net\.depth 14 or 20"),
        ({"depth": 2}, "depth must be .*got 2"),
        ({"parameter": 0.0}, r"parameter must be finite and not 0, got 0\.0\. Pass --model\.net\.parameter -1\.8"),
        ({"parameter": float("nan")}, "parameter must be .*got nan"),
        ({"coefficients": [1, 0, 0]}, r"coefficients must be four finite numbers, got \[1, 0, 0\]"),
        ({"coefficients": [1, 0, 0, float("inf")]}, "four finite numbers"),
        ({"coefficients": [1, 0, 0, 1], "trainable": True}, "trainable must be false for given coefficients"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
