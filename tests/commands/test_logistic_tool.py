import json

import pytest
from helpers.cli_runs import status

from lightning_paf.attacks import PGD


def test_it_prints_the_curve_and_writes_picture_and_numbers(tmp_path, capsys):
    picture, numbers = tmp_path / "new" / "logistic.png", tmp_path / "other" / "logistic.json"
    assert status("logistic", "--classes", 3, 8, "--figure", picture, "--json", numbers) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(numbers.read_text())
    assert content["classes"] == [3, 8]
    assert len(content["weight"]) == 8
    points = content["points"]
    assert [points[0]["eps"], points[-1]["eps"]] == [0, 0.5]
    assert len(points) == 21
    for point in points:
        assert point["exact"] == point["pgd"] == point["fgsm"] <= point["exact_in_range"] == point["pgd_in_range"]
    assert points[0]["exact"] > 0.8 > 0.2 > points[-1]["exact"]
    printed = capsys.readouterr().out
    assert "digits 3 and 8" in printed
    assert "They agree at every eps." in printed


def test_an_attack_that_misses_the_optimum_raises_the_alarm(monkeypatch, capsys):
    monkeypatch.setattr(PGD, "perturb", lambda self, forward, x, y, loss: x)
    assert status("logistic", "--eps-max", 0.4) == 1
    assert "ALARM: attack and closed form differ at eps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", 4, 4], "--classes is 4 4"),
        (["--classes", 0, 10], "--classes is 0 10"),
        (["--classes", -1, 3], "--classes is -1 3"),
        (["--eps-max", 0], "is 0.0. Pass --eps-max 0.5"),
        (["--eps-max", -0.1], "is -0.1"),
        (["--eps-max", "nan"], "is nan"),
        (["--eps-max", 8], "is 8.0"),
    ],
)
def test_nonsense_is_refused(options, message, capsys):
    assert status("logistic", *options) == 1
    assert message in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_explained(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert status("logistic", "--figure", tmp_path / "file" / "picture.png") == 1
    assert "cannot serve as the file of --figure" in capsys.readouterr().err
