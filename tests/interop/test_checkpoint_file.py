"""Choice of weights, refused files, and no execution of anything in a file."""

import pickle

import pytest
import torch
from helpers.originals import dm_wide, wide, write
from safetensors.torch import save_file, save_model

from lightning_paf.interop import map_keys, read_checkpoint

ONE, ZERO = {"a": torch.ones(1)}, {"a": torch.zeros(1)}


def saved(folder, content):
    torch.save(content, folder / "weights.pt")
    return read_checkpoint(folder / "weights.pt")


@pytest.mark.parametrize(
    ("averaged", "raw"),
    [
        ("model_state_dict", "unaveraged_model_state_dict"),
        ("swadict", "state_dict"),
        ("state_dict_ema", "state_dict"),
        ("state_dict", "current_model_state"),
        ("ema", "net"),
    ],
)
def test_averaged_weights_are_preferred(tmp_path, averaged, raw):
    file = saved(tmp_path, {raw: ZERO, averaged: ONE})
    assert (file.choose().name, file.choose("ema").name, file.choose("raw").name) == (averaged, averaged, raw)
    assert (file.choose("ema").tensors, file.choose("raw").tensors) == (ONE, ZERO)


def test_an_empty_average_is_none(tmp_path):
    file = saved(tmp_path, {"state_dict": ONE, "swadict": {}})
    assert file.choose().name == "state_dict"
    with pytest.raises(ValueError, match=r"--ema requires averaged .* with state_dict \(not averaged\) only\. Omit"):
        file.choose("ema")


def test_a_plain_name_is_the_average_only_next_to_the_other(tmp_path):
    assert not saved(tmp_path, {"model_state_dict": ONE}).choose().averaged


def test_other_tensors_of_a_lightning_module_are_left_out(tmp_path):
    write(tmp_path / "weights.pt", "lightning")
    assert read_checkpoint(tmp_path / "weights.pt").choose().left_out == ("criterion.weight",)


def test_checkpoints_of_fit_record_the_normalisation(tmp_path):
    assert saved(tmp_path, {"state_dict": ONE, "hyper_parameters": {"normalize": True}}).normalize is True
    assert saved(tmp_path, ONE).normalize is None


class Bomb:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('executed')",))


def cut(fraction):
    def write_part(path):
        torch.save(dm_wide().state_dict(), path)
        path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])

    return write_part


@pytest.mark.parametrize(
    ("write_file", "message"),
    [
        (lambda path: None, r"There is no checkpoint file .*weights\.pt\. Check the path"),
        (lambda path: torch.save(["x", Bomb()], path), r"that can run any code\. If you trust its author"),
        (lambda path: path.write_bytes(pickle.dumps({"a": Bomb()})), "not unpickled because that can run any code"),
        (lambda path: torch.save(wide(), path), "can run any code"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>Quota exceeded"), "is a web page, not a checkpoint"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"\x00\x01\x02 no checkpoint"), "damaged"),
        (cut(0.1), "damaged"),
        (cut(0.5), "damaged"),
        (cut(0.99), "damaged"),
        (lambda path: torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, path), r"epoch, optimizer\. Save the state"),
        (lambda path: torch.save({}, path), r"with \. Save the state dict alone"),
        (lambda path: torch.save([1, 2], path), r"with list\. Save"),
        (lambda path: torch.save(torch.ones(2), path), r"with Tensor\. Save"),
    ],
)
def test_a_file_without_a_readable_state_dict_is_refused(tmp_path, write_file, message):
    write_file(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "weights.pt")


def test_names_that_safetensors_dropped_are_restored(tmp_path):
    net = wide()
    save_model(net, str(tmp_path / "weights.safetensors"))
    file = read_checkpoint(tmp_path / "weights.safetensors")
    assert set(file.choose().tensors) == set(net.state_dict())
    net.load_state_dict(map_keys(file.choose().tensors, wide()).state)


@pytest.mark.parametrize("mean", ["grey", "0.5", "[[1]]"])
def test_damaged_safetensors_and_metadata_are_refused(tmp_path, mean):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_checkpoint(path)
    save_file({"a": torch.ones(1)}, path, metadata={"mean": mean, "std": "[1]"})
    with pytest.raises(ValueError, match="must be lists of numbers"):
        read_checkpoint(path)
