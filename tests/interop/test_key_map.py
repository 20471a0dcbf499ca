"""Prefixes, shared tensors, and messages about differences."""

import pytest
import torch
from helpers.fakes import TinyNet
from helpers.originals import dm_wide, resnet, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_paf.interop.families import PREFIXES
from lightning_paf.interop.key_map import map_keys, stripped


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(PREFIXES), max_size=5))
def test_any_pile_of_prefixes_is_stripped(pile):
    keys = ["conv.weight", "foo.model.bar", "module.head.bias"]
    assert stripped("".join(pile) + key for key in keys) == keys


def test_a_prefix_is_stripped_only_if_all_keys_have_it():
    assert stripped(["0.weight", "2.weight"]) == ["0.weight", "2.weight"]
    assert stripped(["module.0.weight", "module.2.weight"]) == ["0.weight", "2.weight"]
    assert stripped([]) == []


def test_a_network_whose_keys_begin_with_a_prefix_is_matched():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)))
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    assert set(map_keys(state, net).state) == {"0.0.weight", "0.0.bias", "0.2.weight", "0.2.bias"}


def test_shared_tensors_are_one_row_and_all_entries_and_have_one_value():
    net = wide()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    keys = map_keys(state, net)
    (alpha,) = [row for row in keys.rows if row.ours[0].endswith("alpha")]
    assert len(alpha.ours) == 4  # one in each of three blocks, one before the pooling
    assert set(keys.state) == set(state) == {key for row in keys.rows for key in row.ours}
    state["block2.layer.0.activation.beta"] += 1e-3
    message = r"The 4 layers that share \S*beta must have one value in the file, got .*block2.*activation_scope module"
    with pytest.raises(ValueError, match=message):
        map_keys(state, net)


def test_missing_unexpected_and_misshapen_tensors_are_named():
    net = wide(activation=False)
    state = dict(net.state_dict())
    state["conv9.weight"] = state.pop("conv1.weight")
    state["fc.weight"] = torch.zeros(100, 64)
    with pytest.raises(ValueError) as refusal:
        map_keys(state, net)
    assert str(refusal.value).splitlines()[:4] == [
        "The weights do not fit WideResNet:",
        "  1 missing in the file: conv1.weight",
        "  1 in the file only: conv9.weight",
        "  1 of another shape: fc.weight: (100, 64) instead of (10, 64)",
    ]


@pytest.mark.parametrize(
    ("file", "net", "hint"),
    [
        (wide(), wide(activation=False), "Pass e.g. --activation configs/activation/pssilu.yaml"),
        (wide(activation=False), wide(), "lacks this activation's parameters"),
        (TinyNet(num_classes=7), TinyNet(), "Pass the --dataset that the weights were trained on"),
        (TinyNet(width=8), TinyNet(), "Pass the --net"),
        (dm_wide(), wide(), "Pass the --net"),
        # All shapes agree, but the padding does not.
        (dm_wide(), wide(activation=False), "do not fit WideResNet"),
    ],
)
def test_the_hint_suits_the_difference(file, net, hint):
    with pytest.raises(ValueError, match=hint):
        map_keys(file.state_dict(), net)


def test_the_prefix_of_most_keys_is_stripped_and_only_the_others_are_named():
    net = wide(activation=False)
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    state |= {"student.conv1.weight": torch.ones(1), "student.fc.bias": torch.ones(1)}
    with pytest.raises(
        ValueError,
        match=r"^The weights .*:\n  2 in the file only: student.conv1.weight, student.fc.bias"
        r"\nPass --drop PATTERN, such as --drop 'student\.\*'",
    ):
        map_keys(state, net)
    with pytest.raises(ValueError, match=r"1 missing in the file: fc.bias\n  1 in the file only: head.bias"):
        map_keys({"head.bias" if "fc.bias" in key else key: state[key] for key in state if "model" in key}, net)


def test_tensors_that_implementations_do_not_use_are_left_out():
    net = wide(activation=False)
    state = {f"module.model.{key}": value for key, value in net.state_dict().items()}
    unused = {"module.attacker.model.conv1.weight": torch.ones(1), "module.model.sub_block1.bn.bias": torch.ones(1)}
    keys = map_keys(state | unused, net)
    assert (keys.root, keys.left_out) == ("module.model.", tuple(unused))
    own = nn.ModuleDict({"sub_block1": nn.Linear(2, 2)})
    assert map_keys(own.state_dict(), own).left_out == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    net = resnet()
    net.layer3[0].conv1.weight.data[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"must be finite, got NaN or infinity in layer3\.0\.conv1\.weight"):
        map_keys(net.state_dict(), net)


def test_missing_or_float_counters_are_accepted():
    net = dm_wide()
    state = {key: value.float() for key, value in net.state_dict().items()}
    del state["batchnorm.num_batches_tracked"]
    loaded = map_keys(state, net).state
    assert loaded["batchnorm.num_batches_tracked"] == 0
    assert loaded["layer.0.block.0.batchnorm_0.num_batches_tracked"] == 7
    assert loaded["layer.0.block.0.batchnorm_0.num_batches_tracked"].dtype == torch.int64


def test_networks_on_the_meta_device_and_numbers_without_a_dimension_are_accepted():
    state = {key: value.reshape(()) if key.endswith("alpha") else value for key, value in wide().state_dict().items()}
    loaded = map_keys(state, wide().to("meta")).state
    assert loaded["activation.alpha"].shape == (1,)
    assert loaded["fc.weight"].device.type == "cpu"
