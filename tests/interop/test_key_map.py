"""Keys: stripped only at the front, shared tensors checked, differences named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from originals import dm_wide, resnet, wide
from stand_ins import TinyNet
from torch import nn

from lightning_paf.interop.families import PREFIXES
from lightning_paf.interop.key_map import map_keys, stripped


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(PREFIXES), max_size=5))
def test_any_pile_of_prefixes_is_stripped(pile):
    keys = ["conv.weight", "foo.model.bar", "module.head.bias"]
    assert stripped("".join(pile) + key for key in keys) == keys


def test_a_prefix_is_stripped_only_where_all_keys_have_it():
    assert stripped(["0.weight", "2.weight"]) == ["0.weight", "2.weight"]
    assert stripped(["module.0.weight", "module.2.weight"]) == ["0.weight", "2.weight"]
    assert stripped([]) == []


def test_a_network_whose_own_keys_start_like_a_prefix_is_matched():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)))
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    assert set(map_keys(state, net).state) == {"0.0.weight", "0.0.bias", "0.2.weight", "0.2.bias"}


def test_shared_tensors_are_one_row_and_all_entries():
    net = wide()
    keys = map_keys(net.state_dict(), net)
    (alpha,) = [row for row in keys.rows if row.ours.endswith("alpha")]
    assert alpha.sites == 4  # one in each of three blocks, one before the pooling
    assert set(keys.state) == set(net.state_dict())
    assert sum(row.sites for row in keys.rows) == len(net.state_dict())


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_different_values_for_a_shared_tensor_are_refused(name):
    net = wide()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    state[f"block2.layer.0.activation.{name}"] += 1e-3
    message = rf"shares one .*{name} among 4 places, but the file has different values.*block2.*activation_scope module"
    with pytest.raises(ValueError, match=message):
        map_keys(state, net)


def test_the_difference_names_what_is_missing_unexpected_and_of_another_shape():
    net = wide(activation=False)
    state = dict(net.state_dict())
    state["conv9.weight"] = state.pop("conv1.weight")
    state["fc.weight"] = torch.zeros(100, 64)
    with pytest.raises(ValueError) as refusal:
        map_keys(state, net)
    said = str(refusal.value)
    assert "do not fit WideResNet" in said
    assert "1 missing in the file: conv1.weight" in said
    assert "1 in the file only: conv9.weight" in said
    assert "1 of another shape: fc.weight: (100, 64) instead of (10, 64)" in said


@pytest.mark.parametrize(
    ("file", "net", "remedy"),
    [
        (wide(), wide(activation=False), "pass e.g. --activation configs/activation/pssilu.yaml"),
        (wide(activation=False), wide(), "lacks this activation's parameters"),
        (TinyNet(num_classes=7), TinyNet(), "Pass the --dataset that the weights were trained on"),
        (TinyNet(width=8), TinyNet(), "Pass the --net"),
        (dm_wide(), wide(), "Pass the --net"),
    ],
)
def test_the_remedy_suits_the_difference(file, net, remedy):
    with pytest.raises(ValueError, match=remedy):
        map_keys(file.state_dict(), net)


def test_the_wide_resnets_of_deepmind_and_of_trades_are_kept_apart():
    """All shapes agree, but the padding does not: a renaming between them would be wrong without a warning."""
    with pytest.raises(ValueError, match="do not fit WideResNet"):
        map_keys(dm_wide().state_dict(), wide(activation=False))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    net = resnet()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    state["layer3.0.conv1.weight"][0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"must be finite, but layer3\.0\.conv1\.weight is not"):
        map_keys(state, net)


def test_a_counter_that_is_missing_or_a_float_does_not_matter():
    net = dm_wide()
    state = {key: value.float() for key, value in net.state_dict().items()}
    del state["batchnorm.num_batches_tracked"]
    loaded = map_keys(state, net).state
    assert loaded["batchnorm.num_batches_tracked"] == 0
    assert loaded["layer.0.block.0.batchnorm_0.num_batches_tracked"] == 7
    assert loaded["layer.0.block.0.batchnorm_0.num_batches_tracked"].dtype == torch.int64


def test_a_network_without_memory_is_enough():
    state = wide(activation=False).state_dict()
    with torch.device("meta"):
        net = wide(activation=False)
    assert map_keys(state, net).state["fc.weight"].device.type == "cpu"


def test_a_number_may_have_one_dimension_more_or_less():
    net = wide()
    state = {key: value.reshape(()) if key.endswith("alpha") else value for key, value in net.state_dict().items()}
    assert map_keys(state, net).state["activation.alpha"].shape == (1,)
