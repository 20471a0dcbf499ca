import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.cli_runs import status

from lightning_paf.evaluation.result import EvaluationResult

ATTACK = {"attack": "PGD", "norm": "linf", "eps": "8/255", "eps_value": 8 / 255, "bounds": [0.0, 1.0]}


def write(path, codes, attack=ATTACK, labels=None):
    verdicts = np.array(codes, np.uint8)
    known = {} if labels is None else {"labels": labels}
    EvaluationResult("pgd", attack, verdicts, 1.0, **known).save(path)
    return path


@pytest.fixture
def runs(tmp_path):
    labels = np.arange(24) % 3
    write(tmp_path / "first" / "test" / "pgd.json", [1] * 20 + [2] * 2 + [3] * 2, labels=labels)
    write(tmp_path / "second" / "test" / "pgd.json", [1] * 8 + [2] * 16, labels=labels)
    return tmp_path


def test_it_prints_what_a_reader_needs(runs, capsys):
    assert status("compare", runs / "first", runs / "second") == 0
    out = capsys.readouterr().out
    assert "24 samples, linf eps 8/255, PGD" in out
    assert "91.7 % [73.0, 99.0]" in out  # clean, A
    assert "83.3 % [62.6, 95.3]" in out  # robust, A
    assert "Disputed samples: 12 only A withstands, 0 only B" in out
    assert "+50.0 points" in out
    assert "p = 0.000488" in out
    assert "Robust accuracy by class" in out
    assert out.rstrip().endswith("A is more robust than B (p < 0.001).")


def test_the_json_file_holds_the_same(runs, capsys):
    path = runs / "new" / "comparison.json"
    assert status("compare", runs / "second", runs / "first", "--json", path) == 0
    content = json.loads(path.read_text())
    assert content["conclusion"] in capsys.readouterr().out
    assert content["a"].endswith("second/test/pgd.json")
    assert content["difference"]["value"] == -0.5
    assert [row["total"] for row in content["classes"]] == [8, 8, 8]


def test_an_inconclusive_comparison_is_no_error(runs, capsys):
    assert status("compare", runs / "first", runs / "first") == 0
    assert "Inconclusive" in capsys.readouterr().out


def test_notes_are_printed(runs, tmp_path, capsys):
    other = write(tmp_path / "other.json", [1] * 20, ATTACK | {"attack": "APGD"})
    assert status("compare", runs / "first", other) == 0
    out = capsys.readouterr().out
    assert "Note: A was evaluated on 24 samples, B on 20" in out
    assert "Note: The attacks differ in attack" in out


def test_other_threats_end_with_an_error(runs, tmp_path, capsys):
    other = write(tmp_path / "other.json", [1] * 24, ATTACK | {"norm": "l2"})
    assert status("compare", runs / "first", other) == 1
    assert "norm is linf for A and l2 for B" in capsys.readouterr().err


def test_a_missing_run_ends_with_an_error(runs, capsys):
    assert status("compare", runs / "first", runs / "third") == 1
    assert "There is no" in capsys.readouterr().err


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys; from lightning_paf.commands import compare\n"
        "try: compare.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'scipy', 'lightning'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
