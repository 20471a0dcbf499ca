"""`compare` of two results."""

import json

import numpy as np
import pytest
from helpers.cli_runs import status

from lightning_paf.evaluation.result import EvaluationResult

ATTACK = {"attack": "PGD", "norm": "linf", "eps": "8/255", "eps_value": 8 / 255, "bounds": [0.0, 1.0]}


def write(path, codes, attack=ATTACK, **known):
    EvaluationResult("pgd", attack, np.array(codes, np.uint8), 1.0, **known).save(path)
    return path


@pytest.fixture
def runs(tmp_path):
    labels = np.arange(24) % 3
    write(tmp_path / "first" / "test" / "pgd.json", [1] * 20 + [2] * 2 + [3] * 2, labels=labels)
    write(tmp_path / "second" / "test" / "pgd.json", [1] * 8 + [2] * 16, labels=labels)
    return tmp_path


def test_the_terminal_and_the_json_file_show_the_comparison(runs, capsys):
    path = runs / "new" / "comparison.json"
    assert status("compare", runs / "first", runs / "second", "--json", path) == 0
    out, content = capsys.readouterr().out, json.loads(path.read_text())
    for text in (
        "24 samples, linf eps 8/255, PGD",
        "91.7 % [73.0, 99.0]",  # clean, A
        "83.3 % [62.6, 95.3]",  # robust, A
        "Robust in one model only: 12 samples in A, 0 in B",
        "+50.0 points",
        "p = 0.000488",
        "Robust accuracy by class",
    ):
        assert text in out
    assert out.rstrip().endswith("A is more robust than B (p < 0.001).")
    assert content["conclusion"] == "A is more robust than B (p < 0.001)."
    assert content["b"].endswith("second/test/pgd.json")
    assert content["difference"]["value"] == 0.5
    assert [row["total"] for row in content["classes"]] == [8, 8, 8]


def test_an_inconclusive_comparison_and_its_notes_are_printed(runs, tmp_path, capsys):
    other = write(tmp_path / "other.json", [1] * 20, ATTACK | {"attack": "APGD"})
    assert status("compare", runs / "first", other) == 0
    out = capsys.readouterr().out
    assert "Inconclusive" in out
    assert "Note: A was evaluated on 24 samples, B on 20" in out
    assert "Note: The attacks differ in attack" in out


def test_other_threat_models_and_missing_runs_are_refused(runs, tmp_path, capsys):
    other = write(tmp_path / "other.json", [1] * 24, ATTACK | {"norm": "l2"})
    for path, message in ((other, "norm is linf for A and l2 for B"), (runs / "third", "There is no")):
        assert status("compare", runs / "first", path) == 1
        assert message in capsys.readouterr().err
