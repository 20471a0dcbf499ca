"""The command `analyze NAME`: its list of analyses, their options, and the files that they write."""

import importlib
import json

import pytest
from helpers.cli_runs import status

from lightning_paf.attacks import PGD
from lightning_paf.commands import analyze

NAMES = [
    "channel-activations",
    "concentration",
    "input-sensitivity",
    "jacobian-spectrum",
    "ladder",
    "logistic",
    "min-max",
    "protection",
    "saliency",
    "uncertainty",
    "zero-stability",
]


def test_the_help_lists_every_analysis_with_its_first_line(capsys):
    assert status("analyze", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in NAMES:
        module = importlib.import_module(f"lightning_paf.analysis.{name.replace('-', '_')}")
        assert f"{name} {module.__doc__.splitlines()[0]}" in shown
    assert "security" not in shown


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_an_analysis_fits_a_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert status("analyze", name, "--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: lightning-paf analyze {name}" in shown
    assert ("--ckpt" in shown) == (name != "logistic")
    assert max(map(len, shown.partition("options:")[2].splitlines())) <= 80  # argparse wraps no group in the usage


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: NAME"),
        (["tangents"], "invalid choice: 'tangents'"),
        (["security-curve"], "invalid choice"),
        (["saliency"], "required: --ckpt"),
        (["logistic", "--ckpt", "last.ckpt"], "unrecognized arguments: --ckpt last.ckpt"),
        (["logistic", "--classes", "4", "4"], "two different digits, got 4 4"),
        (["logistic", "--classes", "0", "10"], "--classes: must be at least 0 and at most 9, got 10"),
        (["logistic", "--classes", "-1", "3"], "--classes: must be at least 0 and at most 9, got -1"),
        (["logistic", "--eps-max", "0"], "--eps-max: must be above 0 and at most 1, got 0"),
        (["logistic", "--eps-max", "nan"], "got nan"),
        (["logistic", "--eps-max", "8"], "got 8"),
        (["saliency", "--ckpt", "no", "--grid", "0"], "--grid: must be at least 1, got 0"),
        (["channel-activations", "--ckpt", "no", "--label", "-1"], "--label: must be at least 0, got -1"),
        (["concentration", "--ckpt", "no", "--starts", "1"], "--starts: must be at least 2, got 1"),
        (["concentration", "--ckpt", "no", "--eps", "8/0"], "--eps: must be above 0, got 8/0"),
        (["jacobian-spectrum", "--ckpt", "no", "--iterations", "0"], "--iterations: must be at least 1, got 0"),
        (["input-sensitivity", "--ckpt", "no", "--draws", "1"], "--draws: must be at least 2, got 1"),
        (["input-sensitivity", "--ckpt", "no", "--std", "0"], "--std: must be above 0, got 0"),
        (["protection", "--ckpt", "a", "b", "--protected", "0"], "got 1 classes and 2 checkpoints"),
        (["input-sensitivity", "--ckpt", "no", "--std", "inf"], "--std: must be finite, got inf"),
        (["zero-stability", "--level", "inf"], "--level: must be finite, got inf"),
        (["zero-stability", "--level", "-1"], "--level: must be at least 0, got -1"),
        (["ladder", "--ckpt", "no", "--out", "a.npz", "--eps", "nan"], "--eps: must be finite, got nan"),
        (["ladder", "--ckpt", "no", "--out", "a.npz", "--adaptive", "0", "inf", "1"], "--adaptive: must be finite"),
        (["ladder", "--ckpt", "no", "--out", "a.npz", "--flip", "1.5"], "--flip: must be above 0 and at most 1"),
        (["ladder", "--ckpt", "no", "--out", "a.npz", "--temperature", "0"], "--temperature: must be above 0, got 0"),
        (["ladder", "--ckpt", "no", "--out", "a.npz", "--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["ladder", "--ckpt", "no", "--out", "a.npz", "--svm-images", "1"], "--svm-images: must be at least 2, got 1"),
        (["ladder", "--ckpt", "no", "--out", "a.txt"], "must be an npz file, got a.txt"),
    ],
)
def test_invalid_options_are_refused_before_any_run_is_read(words, message, capsys):
    assert status("analyze", *words) == 1
    assert message in capsys.readouterr().err


def analyzed(capsys, *words):
    """Lines that an analysis prints; without paths they are at most 80 columns wide."""
    assert status("analyze", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines if "/checkpoints/" not in line and not line.startswith("Written: "))
    return "\n".join(lines)


def content_of(folder, name):
    """Content of the JSON file of an analysis; the only other file is the figure."""
    assert {file.name for file in folder.iterdir()} == {f"{name}.json", f"{name}.png"}
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / f"{name}.json").read_text())


def test_concentration(checkpoint, tmp_path, capsys):
    words = ("--examples", 3, "--starts", 3, "--steps", 2, "--eps", "4/255", "--out", tmp_path / "new")
    assert "3 starts of PGD-2 on 3 images, linf 4/255" in analyzed(
        capsys, "concentration", "--ckpt", checkpoint, *words
    )
    content = content_of(tmp_path / "new", "concentration")
    assert content.keys() == {"losses", "clean", "distance"}
    assert len(content["losses"]) == len(content["clean"]) == 3


def test_min_max(checkpoint, capsys):
    assert "features.0" in analyzed(capsys, "min-max", "--ckpt", checkpoint)
    content = content_of(checkpoint.parents[1] / "min_max", "min_max")
    assert len(content) == 4
    assert all(row["ratio"] >= 1 for row in content.values())


def test_saliency(checkpoint, capsys):
    printed = analyzed(capsys, "saliency", "--ckpt", checkpoint, "--examples", 3, "--grid", 2)
    assert "Saliency of 3 images" in printed
    assert "perturbation" in printed
    content = content_of(checkpoint.parents[1] / "saliency", "saliency")
    assert len(content["overlap"]) == len(content["gradient_deletion"]) == len(content["label"]) == 3


def test_protection_of_several_runs(checkpoint, tmp_path, capsys):
    words = ("protection", "--ckpt", checkpoint, checkpoint, "--examples", 9, "--protected", 0)
    printed = analyzed(capsys, *words, 2, "--json", tmp_path / "out.json")
    assert printed.count("taken for it") == 2
    assert "I, the mean over runs of the protected class:\nclean" in printed
    content = json.loads((tmp_path / "out.json").read_text())
    assert [row["label"] for row in content["pgd"]] == [0, 2]
    assert content["pgd"][0]["overall"] <= content["clean"][0]["overall"]
    assert status("analyze", *words, 99) == 1
    rejected = capsys.readouterr()
    assert "must include class 99 and other classes, got 0 of class 99" in rejected.err
    assert rejected.out == "", "both classes are checked before the first attack"


def test_logistic(tmp_path, capsys):
    figure, numbers = tmp_path / "new" / "logistic.png", tmp_path / "other" / "logistic.json"
    printed = analyzed(capsys, "logistic", "--classes", 3, 8, "--figure", figure, "--json", numbers)
    assert "digits 3 and 8" in printed
    assert "Attacks and closed form agree at every eps." in printed
    assert figure.read_bytes().startswith(b"\x89PNG")
    content = json.loads(numbers.read_text())
    assert content["classes"] == [3, 8]
    assert len(content["weight"]) == 8
    points = content["points"]
    assert [points[0]["eps"], points[-1]["eps"], len(points)] == [0, 0.5, 21]
    for point in points:
        assert point["exact"] == point["pgd"] == point["fgsm"] <= point["exact_in_range"] == point["pgd_in_range"]
    assert points[0]["exact"] > 0.8 > 0.2 > points[-1]["exact"]


def test_attack_that_misses_the_optimum_raises_the_alarm(monkeypatch, capsys):
    monkeypatch.setattr(PGD, "perturb", lambda self, forward, x, y, loss: x)
    assert status("analyze", "logistic", "--eps-max", 0.4) == 1
    printed = capsys.readouterr().out
    assert "FAILED: attack and closed form differ at eps" in printed
    assert "from x - s eps sign(w): 4.0e-01" in printed


def test_unwritable_file_is_reported(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert status("analyze", "logistic", "--figure", tmp_path / "file" / "figure.png") == 1
    assert "figure.png cannot be used as an output file" in capsys.readouterr().err


def test_module_without_the_function_is_no_analysis(tmp_path, monkeypatch, capsys):
    """A new file is a new analysis; helpers in the same folder are not listed."""
    monkeypatch.setattr(analyze, "__file__", str(tmp_path / "commands" / "analyze.py"))
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "my_new_one.py").write_text('"""My line."""\ndef analyze(): ...\n')
    (tmp_path / "analysis" / "helpers.py").write_text('"""Helpers."""\ndef other(): ...\n')
    assert status("analyze", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "my-new-one My line." in shown
    assert "helpers" not in shown
