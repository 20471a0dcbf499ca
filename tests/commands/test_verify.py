import shutil

import numpy as np
import pytest
import torch
from helpers.cli_runs import judged_run, status

from lightning_paf.attacks import PGD
from lightning_paf.evaluation.evidence.write import read_receipt

ATTACK = PGD(0.5, steps=2, step_size=0.3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and a receipt of it."""
    folder = tmp_path_factory.mktemp("verify")
    judged_run(folder, ATTACK, "receipt", with_config=True)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(trained, tmp_path / "copy")


def verify(folder, *options):
    return status("verify", folder / "receipt", "--ckpt", folder / "run" / "checkpoints" / "last.ckpt", *options)


def test_an_intact_receipt_holds(folder, capsys):
    receipt = read_receipt(folder / "receipt")
    assert np.count_nonzero(receipt.encoding) > 0
    assert verify(folder, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "22 samples of npz, linf, eps=1/2, pgd, seed 0" in printed
    assert printed.count("holds") >= 6
    wrong = receipt.manifest["counts"]["broken"] + receipt.manifest["counts"]["clean_errors"]
    assert f"wrong about {wrong} of 22 samples" in printed


def test_the_data_may_have_moved(folder, capsys):
    shutil.copytree(folder / "images", folder / "elsewhere")
    with np.load(folder / "elsewhere" / "test.npz") as data:
        image, label = data["image"].copy(), data["label"]
    assert verify(folder, "--data.root", folder / "elsewhere") == 0
    image[4, 0, 0, 0] ^= 1
    np.savez(folder / "elsewhere" / "test.npz", image=image, label=label)
    capsys.readouterr()
    assert verify(folder, "--data.root", folder / "elsewhere") == 1
    printed = capsys.readouterr().out
    assert "sample 4, inputs: another image or label" in printed
    assert "1 not" in printed


def test_another_checkpoint_is_named(folder, capsys):
    path = folder / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        if name.endswith("weight"):
            tensor.neg_()
    torch.save(checkpoint, path)
    assert verify(folder) == 1
    printed = capsys.readouterr().out
    assert "weights: here " in printed


def test_another_configuration_is_named(folder, capsys):
    config = folder / "run" / "config.yaml"
    (folder / "other.yaml").write_text("# a comment\n" + config.read_text())
    assert verify(folder, "--config", folder / "other.yaml") == 1
    assert "configuration: here " in capsys.readouterr().out
    assert verify(folder, "--config", config) == 0


def test_a_damaged_receipt_is_named(folder, capsys):
    with (folder / "receipt").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert verify(folder) == 1
    error = capsys.readouterr().err
    assert "is refused. tensor '" in error
    assert "Traceback" not in error


def test_a_missing_receipt_is_named(folder, capsys):
    (folder / "receipt").unlink()
    assert verify(folder) == 1
    assert "There is no receipt" in capsys.readouterr().err


def test_many_findings_are_cut(folder, capsys):
    with np.load(folder / "images" / "test.npz") as data:
        image, label = 255 - data["image"], data["label"]
    np.savez(folder / "images" / "test.npz", image=image, label=label)
    assert verify(folder, "--data.root", folder / "images") == 1
    assert "... and 2 more of `inputs`" in capsys.readouterr().out
