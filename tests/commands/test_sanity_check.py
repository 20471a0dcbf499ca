"""The command, on a run that takes a second."""

import json

import pytest
import torch
from helpers.cli_runs import status, write_experiment

from lightning_paf.evaluation.checks.run import SYMPTOMS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    experiment = write_experiment(folder)
    # Three brightnesses: a model of them is learned in a few epochs, at a rate of 0.1 not without a limit on gradients.
    options = ("--trainer.max_epochs", "12", "--trainer.gradient_clip_val", "1")
    assert status("fit", "-c", experiment, "--run", folder / "run", *options) == 0
    return folder / "run" / "checkpoints" / "last.ckpt"


def test_a_healthy_run_gets_a_clean_bill(checkpoint, tmp_path, capsys):
    assert status("doctor", "--ckpt", checkpoint, "--json", tmp_path / "doctor.json") == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert "Clean bill" in printed
    assert found["healthy"]
    assert (found["eps"], found["norm"], found["examples"]) == ("8/255", "linf", 22)
    assert [finding["check"] for finding in found["findings"]] == [symptom.name for symptom in SYMPTOMS]
    assert found["not_examined"] == []
    assert all(symptom.name in printed for symptom in SYMPTOMS)


def test_an_ill_run_exits_with_the_evidence(checkpoint, tmp_path, capsys):
    broken = torch.load(checkpoint, weights_only=True)
    head = next(key for key in broken["state_dict"] if key.endswith("fc.weight"))
    broken["state_dict"][head] *= 0
    path = checkpoint.with_name("broken.ckpt")
    torch.save(broken, path)
    words = ["--eps", "0.5", "--norm", "l2", "--examples", "20", "--json", tmp_path / "doctor.json"]
    assert status("doctor", "--ckpt", path, *words) == 1
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert "Check the checkpoint" in printed
    assert "Not examined" in printed
    assert (found["healthy"], found["eps"], found["norm"], found["examples"]) == (False, "0.5", "l2", 20)
    assert found["findings"][-1]["check"] == "clean-accuracy"
    assert "black-box" in found["not_examined"]


def test_a_surrogate_is_used(checkpoint, tmp_path):
    assert status("doctor", "--ckpt", checkpoint, "--surrogate", checkpoint, "--json", tmp_path / "doctor.json") == 0
    last = json.loads((tmp_path / "doctor.json").read_text())["findings"][-1]
    assert last["check"] == "transfer"
    assert "the surrogate" in last["evidence"]


def test_wrong_options_are_refused(checkpoint, capsys):
    assert status("doctor", "--ckpt", checkpoint, "--eps", "8/0") == 2
    assert "8/255 or 0.5" in capsys.readouterr().err
    assert status("doctor", "--ckpt", checkpoint, "--examples", "5") == 1
    assert "--examples N" in capsys.readouterr().err
    assert status("doctor", "--ckpt", checkpoint, "--json", checkpoint.parent / "missing" / "doctor.json") == 1
    assert "--json" in capsys.readouterr().err
