"""`compare` of two results."""

import csv
import json
import re

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


@pytest.mark.parametrize(
    ("names", "shown"), [(("cat", "[red]"), ["cat", "[red]", "2"]), (("cat", "red"), ["0", "1", "2"])]
)
def test_classes_have_names_if_both_files_hold_the_same(names, shown, tmp_path, capsys):
    labels = np.arange(24) % 3
    for name, known in (("a", ("cat", "[red]")), ("b", names)):
        write(tmp_path / f"{name}.json", [1] * 24, labels=labels, class_names=known)
    assert status("compare", tmp_path / "a.json", tmp_path / "b.json") == 0
    assert re.findall(r"(\S+) \W +8 ", capsys.readouterr().out) == shown


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


def test_any_number_of_runs_are_compared_with_the_first(runs, capsys):
    write(runs / "third" / "test" / "pgd.json", [1] * 6 + [2] * 18)
    for run, robust in (("first", 10), ("third", 4)):
        write(runs / run / "test" / "autoattack.json", [1] * robust + [2] * (24 - robust))
    files = [word for option in ("csv", "json", "figure") for word in (f"--{option}", runs / "out" / option)]
    assert status("compare", runs / "first", runs / "second", runs / "third", *files) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"pgd, 24 samples *\n.*\nfirst +91\.7 % \[73\.0, 99\.0\] +83\.3 % .* - *\n", out)
    assert re.search(r"second .* 33\.3 % .* -50\.0 \[-\d\d\.\d, -\d\d\.\d\] \* *\n", out)
    assert "Note: second has no result autoattack." in out
    table = list(csv.DictReader((runs / "out" / "csv").open()))
    found = {(row["evaluation"], row["model"]): row for row in table}
    assert len(found) == 5
    assert float(found["pgd", "second"]["difference"]) == -0.5
    assert float(found["pgd", "second"]["mcnemar_p"]) == pytest.approx(2 * 0.5**12)
    assert float(found["autoattack", "third"]["robust"]) == pytest.approx(4 / 24)
    assert found["autoattack", "first"]["difference"] == ""
    assert json.loads((runs / "out" / "json").read_text())["rows"][0]["model"] == "first"
    assert (runs / "out" / "figure").read_bytes().startswith(b"\x89PNG")


def test_a_table_names_the_runs_that_cannot_be_compared(runs, capsys):
    write(runs / "third" / "pgd.json", [1] * 24, ATTACK | {"norm": "l2"})
    assert status("compare", *(runs / name for name in ("first", "second", "third"))) == 1
    assert "Comparison of A, third, with B, first: Threat models must be equal" in capsys.readouterr().err


def test_one_run_is_refused(runs, capsys):
    assert status("compare", runs / "first") == 1
    assert "RUN must be given at least twice" in capsys.readouterr().err
