"""`verify` of intact, changed and old evidence."""

import shutil

import numpy as np
import pytest
import torch
from helpers.cli_runs import evaluated_run, status
from helpers.evidence_fakes import forge
from safetensors.numpy import save_file

from lightning_paf.attacks import PGD
from lightning_paf.evaluation.evidence import read

ATTACK = PGD(0.5, steps=2, step_size=0.3)
NAME = "pgd.evidence.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with evidence."""
    folder = tmp_path_factory.mktemp("verify")
    evaluated_run(folder, ATTACK, NAME, with_config=True)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy for a test to damage."""
    return shutil.copytree(trained, tmp_path / "copy")


def verify(folder, *options, name=NAME):
    return status("verify", folder / name, "--ckpt", folder / "run" / "checkpoints" / "last.ckpt", *options)


def test_intact_evidence_holds(folder, capsys):
    evidence = read(folder / NAME)
    assert evidence.fooled.any()
    assert verify(folder, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "22 samples of npz, linf, eps=0.5, pgd, seed 0" in printed
    assert printed.count("holds") >= 6
    assert f"misclassifies {np.count_nonzero(evidence.outcomes > 1)} of 22 samples" in printed
    checkpoints = folder / "run" / "checkpoints"
    shutil.copytree(checkpoints, checkpoints / "below")
    assert status("verify", folder / NAME, "--ckpt", checkpoints / "below" / "last.ckpt") == 0


def test_moved_data_are_accepted_and_changed_data_are_not(folder, capsys):
    shutil.copytree(folder / "images", folder / "elsewhere")
    with np.load(folder / "elsewhere" / "test.npz") as data:
        image, label = data["image"].copy(), data["label"]
    assert verify(folder, "--data.root", folder / "elsewhere") == 0
    for changed, words in (([4], ["sample 4, inputs: another", "1 failed"]), (..., ["... and 2 more of `inputs`"])):
        image[changed] ^= 1
        np.savez(folder / "elsewhere" / "test.npz", image=image, label=label)
        capsys.readouterr()
        assert verify(folder, "--data.root", folder / "elsewhere") == 1
        printed = capsys.readouterr().out
        assert all(word in printed for word in words)
        image[changed] ^= 1


def test_another_checkpoint_and_configuration_are_named(folder, capsys):
    config, path = folder / "run" / "config.yaml", folder / "run" / "checkpoints" / "last.ckpt"
    (folder / "other.yaml").write_text("# a comment\n" + config.read_text())
    assert verify(folder, "--config", config) == 0
    assert verify(folder, "--config", folder / "other.yaml") == 1
    assert "configuration: here " in capsys.readouterr().out
    checkpoint = torch.load(path, weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        if name.endswith("weight"):
            tensor.neg_()
    torch.save(checkpoint, path)
    assert verify(folder) == 1
    assert "weights: here " in capsys.readouterr().out


DAMAGED = {
    "There is no ": lambda path: path.unlink(),
    "must be valid evidence, but it is damaged": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
    "must be valid evidence, but it is not a safetensors file": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "must be valid evidence, but fooled_by must": lambda path: forge(path, sub_attacks=[]),
}


@pytest.mark.parametrize(("words", "damage"), DAMAGED.items(), ids=DAMAGED)
def test_damaged_evidence_is_refused_in_one_line(trained, tmp_path, capsys, words, damage):
    path = shutil.copy(trained / NAME, tmp_path / NAME)
    damage(path)
    for command in ("verify", "report"):
        assert status(command, path, "--ckpt", "absent.ckpt") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_evidence_of_an_earlier_version_is_refused_in_one_line(folder, capsys):
    old, run = folder / "run" / "test" / "pgd.receipt.safetensors", folder / "run"
    old.parent.mkdir()
    save_file({"ids": np.arange(3)}, old, {"manifest": "{}"})
    export = ["export", "--out", folder / "out"]
    for words in (["verify", old], ["report", old], ["report", run], [*export, "--evidence", old], export):
        capsys.readouterr()
        assert status(*words, "--ckpt", run / "checkpoints" / "last.ckpt") == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "was written by an earlier version. Run `lightning-paf test`" in line


def test_text_of_a_file_does_not_control_the_terminal(folder, capsys):
    evil = "\x1b[2J\r\n\ud800\u202e[bold]"
    forge(folder / NAME, dataset=evil, versions={evil: evil}, sub_attacks=["clean", evil], code=evil)
    assert status("report", folder / NAME, "--ckpt", folder / "run" / "checkpoints" / "last.ckpt") == 0
    assert "\x1b" not in (folder / "pgd.html").read_text()
    forge(folder / NAME, weights=evil)
    capsys.readouterr()
    assert verify(folder) == 1
    printed = capsys.readouterr().out
    assert all(letter.isprintable() or letter == "\n" for letter in printed)
    assert printed.count("?[2J????[bold]") == 5
