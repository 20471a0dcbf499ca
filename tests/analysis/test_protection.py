"""Accuracies around a class, counted by hand; the command that prints them."""

import json

import numpy as np
import pytest
from helpers.cli_runs import status, write_experiment

from lightning_paf.analysis.protection import mean_protection, protection

#           true 0        true 1           true 2
CONFUSION = [[6, 1, 1], [2, 3, 0], [1, 1, 5]]
LABELS = np.repeat(np.arange(3), [8, 5, 7])
PREDICTIONS = np.concatenate([np.repeat(np.arange(3), row) for row in CONFUSION])


def test_shares_are_those_of_the_confusion_matrix():
    found = protection(LABELS, PREDICTIONS, 0)
    assert found.own == 6 / 8
    assert found.others == pytest.approx(8 / 12)
    assert found.taken == pytest.approx(3 / 12)
    assert found.overall == pytest.approx(14 / 20)


def test_i_is_the_mean_over_protected_classes():
    found = [protection(LABELS, PREDICTIONS, label) for label in range(3)]
    assert mean_protection(found) == pytest.approx((6 / 8 + 3 / 5 + 5 / 7) / 3)


@pytest.mark.parametrize(("labels", "label"), [([1, 1], 1), ([1, 1], 0)])
def test_a_class_needs_samples_and_so_do_the_others(labels, label):
    with pytest.raises(ValueError, match=f"protected class {label}"):
        protection(np.array(labels), np.array(labels), label)


def test_the_command_prints_a_table_for_each_run_and_their_mean(tmp_path, capsys):
    assert status("fit", "-c", write_experiment(tmp_path), "--run", tmp_path / "run") == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    words = ["protected", "--ckpt", checkpoint, checkpoint, "--protected", 0, 2, "--json", tmp_path / "out.json"]
    assert status(*words) == 0
    printed = capsys.readouterr().out
    assert printed.count("taken for it") == 2
    assert "I, the mean over runs of the protected class: clean" in printed
    content = json.loads((tmp_path / "out.json").read_text())
    assert [row["label"] for row in content["pgd"]] == [0, 2]
    assert content["pgd"][0]["overall"] <= content["clean"][0]["overall"]
    assert status(*words[:4], "--protected", 0, 99) == 1
    refused = capsys.readouterr()
    assert "Of 22 samples 0 have the protected class 99" in refused.err
    assert refused.out == "", "both classes are looked at before anything is attacked"
    assert status(*words[:4], "--protected", 0) == 1
    assert "Each run has its protected class" in capsys.readouterr().err
