"""Reading: what is chosen, what is refused, and that nothing in a file is executed."""

import pickle

import pytest
import torch
from originals import dm_wide, shifted, wide, write

from lightning_paf.interop import map_keys, read_checkpoint

WANG = {"model_state_dict": {"a": torch.ones(1)}, "unaveraged_model_state_dict": {"a": torch.zeros(1)}}


def saved(folder, content, name="weights.pt"):
    torch.save(content, folder / name)
    return read_checkpoint(folder / name)


@pytest.mark.parametrize(
    ("content", "averaged", "raw"),
    [
        (WANG, "model_state_dict", "unaveraged_model_state_dict"),
        ({"state_dict": {"a": torch.ones(1)}, "swadict": {"a": torch.ones(1)}}, "swadict", "state_dict"),
        ({"state_dict": {"a": torch.ones(1)}, "state_dict_ema": {"a": torch.ones(1)}}, "state_dict_ema", "state_dict"),
        (
            {"state_dict": {"a": torch.ones(1)}, "current_model_state": {"a": torch.ones(1)}},
            "state_dict",
            "current_model_state",
        ),
    ],
)
def test_averaged_weights_are_preferred(tmp_path, content, averaged, raw):
    file = saved(tmp_path, content)
    assert (file.choose().name, file.choose("ema").name, file.choose("raw").name) == (averaged, averaged, raw)


def test_an_empty_average_is_none(tmp_path):
    file = saved(tmp_path, {"state_dict": {"a": torch.ones(1)}, "swadict": {}})
    assert file.choose().name == "state_dict"
    with pytest.raises(ValueError, match=r"--ema asks for averaged weights, but .* holds only state_dict"):
        file.choose("ema")


def test_a_plain_name_means_the_average_only_beside_the_other(tmp_path):
    assert not saved(tmp_path, {"model_state_dict": {"a": torch.ones(1)}}).choose().averaged


def test_what_lies_beside_the_network_in_a_lightning_file_is_left_out(tmp_path):
    write(tmp_path / "weights.pt", "lightning")
    assert read_checkpoint(tmp_path / "weights.pt").choose().left_out == ("criterion.weight",)


def test_our_own_checkpoints_say_whether_they_normalise(tmp_path):
    content = {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": {"normalize": True}}
    assert saved(tmp_path, content).normalize is True
    assert saved(tmp_path, {"a": torch.ones(1)}).normalize is None


class Bomb:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('executed')",))


@pytest.mark.parametrize("how", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_objects_are_not_unpickled(tmp_path, how):
    how({"state_dict": {"a": torch.ones(1)}, "args": Bomb()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"not unpickled because that can run any code\. If you trust its author"):
        read_checkpoint(tmp_path / "weights.pt")


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(wide(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="can run any code"):
        read_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "is a web page and no checkpoint"),
        (b"", "damaged"),
        (b"\x00\x01\x02 no checkpoint", "damaged"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pt", "weights.ckpt"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
def test_a_cut_off_file_is_refused(tmp_path, cut):
    torch.save(dm_wide().state_dict(), tmp_path / "weights.pt")
    content = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(content[: int(cut * len(content))])
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "epoch, optimizer"),
        ({}, ""),
        ([1, 2], "list"),
        (torch.ones(2), "Tensor"),
    ],
)
def test_a_file_without_a_state_dict_is_refused_by_what_it_holds(tmp_path, content, held):
    with pytest.raises(ValueError, match=rf"holds {held}\. Save the state dict alone"):
        saved(tmp_path, content)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is none at .*nowhere\.pt\. Check the path"):
        read_checkpoint(tmp_path / "nowhere.pt")


def test_safetensors_restore_the_names_that_its_writer_dropped(tmp_path):
    from safetensors.torch import save_model

    net = wide()
    save_model(net, str(tmp_path / "weights.safetensors"))
    file = read_checkpoint(tmp_path / "weights.safetensors")
    assert set(file.choose().tensors) == set(net.state_dict())
    net.load_state_dict(map_keys(file.choose().tensors, wide()).state)


def test_damaged_safetensors_are_refused(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="no whole safetensors file"):
        read_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("mean", ["grey", "0.5", "[[1]]"])
def test_a_note_that_is_no_normalisation_is_refused(tmp_path, mean):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "weights.safetensors", metadata={"mean": mean, "std": "[1]"})
    with pytest.raises(ValueError, match="no list of numbers"):
        read_checkpoint(tmp_path / "weights.safetensors")


def test_a_set_of_weights_is_that_of_its_name(tmp_path):
    net = dm_wide()
    file = saved(tmp_path, {"net": shifted(net.state_dict()), "ema": net.state_dict()})
    torch.testing.assert_close(file.choose("ema").tensors["logits.weight"], net.logits.weight.data)
    torch.testing.assert_close(file.choose("raw").tensors["logits.weight"], 1.1 * net.logits.weight.data)
