"""Analysis of zero stability: the family, and trained networks."""

import json

import pytest
from helpers.cli_runs import status, write_experiment

from lightning_paf.analysis.zero_stability import StabilityPoint, draw_accuracy_over_root


def test_without_runs_it_describes_the_family(tmp_path, capsys):
    files = ("--figure", tmp_path / "new" / "a.png", "--json", tmp_path / "a.json")
    assert status("analyze", "zero-stability", *files) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines[:-2]) <= 80
    rows = {line.split()[0]: line.split() for line in lines}
    assert rows["-1.8"][1:] == ["0.3333", "0.5556", "0.1111", "1.7778", "0.3333", "yes"]
    assert rows["-0.5"][-2:] == ["1.8828", "no"]
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content[1]["modulus"] == pytest.approx(1 / 3, abs=1e-6)


def test_a_run_is_evaluated_at_its_largest_root(tmp_path, capsys):
    net = ("--model.net", "ZeroSNet", "--model.net.depth", "14", "--model.net.width", "2")
    trainable = ("--model.net.trainable", "true", "--model.net.parameter", "1", "--run", tmp_path / "tra")
    assert status("fit", "-c", write_experiment(tmp_path), *net, *trainable) == 0
    capsys.readouterr()
    words = ("--ckpt", tmp_path / "tra" / "checkpoints" / "last.ckpt", "--examples", 9)
    files = ("--figure", tmp_path / "a.png", "--json", tmp_path / "a.json")
    assert status("analyze", "zero-stability", *words, *files) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert float(rows["tra"][1]) == pytest.approx(0.71, abs=0.1)
    (point,) = json.loads((tmp_path / "a.json").read_text())
    assert point["accuracy"].keys() == {"clean", "gaussian", "uniform", "constant"}
    assert all(0 <= value <= 1 for value in point["accuracy"].values())


def test_the_figure_has_the_accuracies_over_the_roots():
    points = [StabilityPoint(str(m), m, m < 1, {"clean": 0.9 - m / 4, "constant": 0.5}) for m in (1.9, 0.3, 0.7)]
    (axes,) = draw_accuracy_over_root(points).axes
    line = axes.get_lines()[0]
    assert [*line.get_xdata()] == [0.3, 0.7, 1.9]
    assert [*line.get_ydata()] == pytest.approx([82.5, 72.5, 42.5])


def test_another_network_is_refused(checkpoint, capsys):
    assert status("analyze", "zero-stability", "--ckpt", checkpoint) == 1
    assert "must be a ZeroSNet, got SmallConvNet" in capsys.readouterr().err
