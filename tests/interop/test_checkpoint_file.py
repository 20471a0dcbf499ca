"""Choice of weights, refused files, and no execution of anything in a file."""

import argparse
import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
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
        ("model_ema", "model"),
        ("avg_model", "generator"),
        ("ckpt.ema", "ckpt.net"),
    ],
)
def test_averaged_weights_are_preferred(tmp_path, averaged, raw):
    content = {raw: ZERO, averaged: ONE}
    if "." in raw:
        content = {"ckpt": {key.partition(".")[2]: value for key, value in content.items()}}
    file = saved(tmp_path, content)
    assert (file.choose().name, file.choose("ema").name, file.choose("raw").name) == (averaged, averaged, raw)
    assert (file.choose("ema").tensors, file.choose("raw").tensors) == (ONE, ZERO)


@pytest.mark.parametrize(
    "content",
    [
        {"best": ONE},
        {"a": {"params": ONE, "epoch": 3}},
        {"model": {**ONE, "steps": 3}},
        ONE | {"b": torch.zeros(2), "version": 2},
        {"weights": ONE, "optimizer": {"state": {0: ZERO}, "param_groups": [{"lr": 0.1}]}},
    ],
)
def test_the_only_state_dict_is_found(tmp_path, content):
    assert saved(tmp_path, content).choose().tensors["a"] == 1


def test_one_of_several_unusual_entries_must_be_named(tmp_path):
    file = saved(tmp_path, {"generator": ONE, "critic": ZERO})
    with pytest.raises(ValueError, match=r"one state dict .* got generator, critic .*Pass --entry with one of them"):
        file.choose()
    assert file.choose(entry="critic").tensors == ZERO
    with pytest.raises(ValueError, match=r"--entry must be a state dict of .* \(generator, critic\), got net"):
        file.choose(entry="net")


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_next_to_the_weights_become_placeholders(tmp_path, zipped):
    options = argparse.Namespace(out=Path("x"), lr=Fraction(1, 3), normalize_input=True)
    content = {"state_dict": ONE, "args": options, "metric": np.float64(3)}
    torch.save(content, tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    file = read_checkpoint(tmp_path / "weights.pt")
    assert file.choose().tensors == ONE
    assert file.evidence == "normalize_input: True"


@pytest.mark.parametrize(("noted", "normalize"), [({"normalize_input": False}, False), ({"lr": True}, None)])
def test_a_recorded_option_about_normalisation_is_used(tmp_path, noted, normalize):
    file = saved(tmp_path, {"state_dict": ONE, "config": {"data": noted}})
    assert (file.normalize, file.evidence) == (normalize, None)


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


def write_array(save):
    def write_file(path):
        with path.open("wb") as stream:
            save(stream, np.ones(3))

    return write_file


@pytest.mark.parametrize(
    ("write_file", "message"),
    [
        (lambda path: None, r"There is no checkpoint file .*weights\.pt\. Check the path"),
        (lambda path: torch.save(["x", Bomb()], path), "can run any code"),
        (lambda path: path.write_bytes(pickle.dumps({"a": Bomb()})), "not unpickled because that can run any code"),
        (lambda path: torch.save(wide(), path), "can run any code"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>Quota exceeded"), "is a web page, not a checkpoint"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha"), "a Git LFS pointer"),
        (write_array(np.save), "is a NumPy array, not a checkpoint"),
        (write_array(np.savez), "is an archive of NumPy arrays, not a checkpoint"),
        (lambda path: torch.jit.trace(torch.nn.ReLU(), torch.ones(1)).save(path), r"TorchScript archive.*jit\.load"),
        (lambda path: torch.save({"a": wide()}, path), "hold one, got .* with a"),
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
