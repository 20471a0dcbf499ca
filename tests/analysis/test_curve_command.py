"""The command for security curves: table, figure, numbers and default grid."""

import json
from fractions import Fraction

import pytest
from helpers.cli_runs import status

from lightning_paf.attacks import PGD
from lightning_paf.commands import curve


def computed(checkpoint, *options):
    return status("curve", "--ckpt", checkpoint, "--device", "cpu", "--steps", "5", *options)


@pytest.mark.parametrize("method", ["fixed-eps", "minimum-norm"])
def test_table_figure_and_numbers(checkpoint, method, tmp_path, capsys):
    out = tmp_path / "new"
    assert computed(checkpoint, "--grid", "0,2/255,8/255,32/255", "--method", method, "--out", out) == 0
    assert sorted(file.name for file in out.iterdir()) == ["curve_linf.json", "curve_linf.png", "state"]
    content = json.loads((out / "curve_linf.json").read_text())
    assert [point["eps"] for point in content["points"]] == ["0", "2/255", "8/255", "32/255"]
    accuracies = [point["accuracy"] for point in content["points"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert content["points"][0]["total"] == len(content["ids"]) == 22
    assert content["search"]["method"] == method
    assert content["check"]["robust_at_one"] == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("Written: "))
    assert "32/255" in printed
    assert "Robust at eps 1 (0 expected): 0 of 22" in printed
    assert "ALARM" not in printed


def test_default_grid_reaches_twice_the_eps_of_the_training_and_the_files_are_in_the_run(run, checkpoint):
    assert computed(checkpoint, "--examples", "4") == 0
    content = json.loads((run / "curve" / "curve_linf.json").read_text())
    expected = ["0", *(f"{n}/255" for n in (2, 4, 6, 8, 10, 12, 16))]
    assert [point["eps"] for point in content["points"]] == expected
    assert content["points"][0]["total"] == 4


def test_another_norm(checkpoint, tmp_path):
    assert computed(checkpoint, "--norm", "l2", "--examples", "4", "--grid", "0.1,0.5", "--out", tmp_path) == 0
    content = json.loads((tmp_path / "curve_l2.json").read_text())
    assert (content["norm"], content["check"]["robust_at_one"]) == ("l2", None)


def test_attack_that_finds_nothing_raises_the_alarm(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PGD, "perturb", lambda self, forward, x, y, loss: x)
    monkeypatch.setattr(curve, "_attack_at", lambda norm, *_: lambda eps: PGD(eps, norm=norm))
    assert computed(checkpoint, "--grid", "8/255", "--out", tmp_path) == 1
    printed = capsys.readouterr().out
    assert "ALARM: " in printed
    assert "withstand eps 1" in printed
    assert json.loads((tmp_path / "curve_linf.json").read_text())["check"]["alarms"]


def test_grids_are_fractions():
    assert curve._grid("0, 2/255,0.5") == (Fraction(2, 255), Fraction(1, 2))
    assert curve._grid("8/255") == (Fraction(8, 255),)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        *(("--grid", text, "must be increasing numbers") for text in ("", "a", "1/0", "0.1;0.2", "0.2,0.1", "0", "-1")),
        *((option, "0", "must be at least 1, got 0") for option in ("--examples", "--steps", "--batch_size")),
    ],
)
def test_invalid_options_are_refused_before_the_run_is_read(option, text, message, capsys):
    assert status("curve", "--ckpt", "no.ckpt", f"{option}={text}") == 1
    assert f"argument {option}: {message}" in capsys.readouterr().err
