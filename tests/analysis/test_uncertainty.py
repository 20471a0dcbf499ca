"""Uncertainty of predictions."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.cli_runs import status

from lightning_paf.analysis.uncertainty import auroc, calibration, draw_uncertainty, entropy, permuted, rotated


def test_uniform_predictions_have_closed_values():
    found = calibration(torch.full((8, 4), 0.25), torch.arange(8) % 4)
    assert found["nll"] == pytest.approx(math.log(4))
    assert found["entropy"] == pytest.approx(math.log(4))
    assert found["brier"] == pytest.approx(0.75)
    assert found["ece"] == pytest.approx(0, abs=1e-6)
    assert found["error"] == pytest.approx(0.75)


def test_certain_predictions_have_closed_values():
    probabilities = torch.eye(4)
    right = calibration(probabilities, torch.arange(4))
    assert right == pytest.approx(dict.fromkeys(right, 0.0))
    wrong = calibration(probabilities, torch.tensor([1, 0, 3, 2]))
    assert (wrong["error"], wrong["ece"], wrong["brier"]) == pytest.approx((1, 1, 2))
    assert math.isfinite(wrong["nll"])


def test_the_calibration_error_is_that_of_the_bins():
    probabilities = torch.tensor([[0.85, 0.15], [0.85, 0.15], [0.65, 0.35], [0.35, 0.65]])
    found = calibration(probabilities, torch.tensor([0, 1, 0, 1]))
    assert found["ece"] == pytest.approx(0.5 * abs(0.85 - 0.5) + 0.5 * abs(0.65 - 1), abs=1e-6)


def test_the_area_is_the_probability_of_the_right_order():
    inside, outside = torch.tensor([0.1, 0.5, 2.0]), torch.tensor([0.4, 3.0])
    pairs = [(o > i) + 0.5 * (o == i) for i in inside.tolist() for o in outside.tolist()]
    assert auroc(inside, outside) == pytest.approx(sum(pairs) / 6)
    assert auroc(torch.zeros(3), torch.zeros(4)) == pytest.approx(0.5)
    assert auroc(inside, inside + 10) == 1


def test_shifts_keep_pixels():
    x = torch.rand(2, 3, 5, 5)
    for shift in (permuted, rotated):
        z = shift(x)
        assert not torch.equal(z, x)
        assert torch.equal(z.flatten(2).sort().values, x.flatten(2).sort().values)
    assert torch.equal(rotated(rotated(x)), x.flip(2, 3))


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_rotations_turn_the_image_around_its_centre(size):
    x = torch.rand(2, 3, *size)
    assert torch.equal(rotated(x, 0), x)
    assert torch.equal(rotated(x, 180), x.flip(2, 3))
    disc = torch.zeros(1, 1, 9, 9)
    disc[:, :, 3:6, 3:6] = 1
    turned = rotated(disc, 45)
    assert turned[0, 0, 4, 4] == pytest.approx(1)
    assert float(turned.sum()) == pytest.approx(9, abs=0.5)
    top = torch.zeros(1, 1, 9, 9)
    top[:, :, 0, 4] = 1
    assert rotated(top, 30)[0, 0, :, :4].sum() > 0.5  # counterclockwise


def test_the_figure_has_reliability_and_entropies():
    probabilities = torch.tensor([[0.85, 0.15], [0.85, 0.15], [0.65, 0.35]])
    rotations = {0: {"error": 0.1, "ece": 0.2, "entropy": math.log(2)}, 15: {"error": 0.3, "ece": 0.2, "entropy": 0.0}}
    figure = draw_uncertainty(probabilities, torch.tensor([0, 1, 0]), {"other": torch.rand(4)}, rotations, "title")
    left, right, last = figure.axes
    line = left.get_lines()[1]
    assert [*line.get_xdata()] == pytest.approx([0.65, 0.85])
    assert [*line.get_ydata()] == pytest.approx([1, 0.5])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["test", "other"]
    drawn = {line.get_label(): [*line.get_ydata()] for line in last.get_lines()}
    assert drawn == {"error": [0.1, 0.3], "ece": [0.2, 0.2], "entropy / ln K": [1, 0]}
    assert entropy(probabilities).shape == (3,)


def test_a_run_is_analysed(checkpoint, tmp_path, capsys):
    np.savez(tmp_path / "noise.npz", image=np.zeros((5, 8, 8, 1), np.uint8), label=np.zeros(5, np.int64))
    words = ("--ckpt", checkpoint, "--examples", 9, "--out", tmp_path / "out")
    assert status("analyze", "uncertainty", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-2])) <= 80
    content = json.loads((tmp_path / "out" / "uncertainty.json").read_text())
    assert content["ood"].keys() == {"permuted", "rotated"}
    assert [*content["rotations"]] == [str(degrees) for degrees in range(0, 181, 15)]
    assert content["rotations"]["0"] == pytest.approx({**content["test"], "auroc": 0.5})
    assert (tmp_path / "out" / "uncertainty.png").read_bytes().startswith(b"\x89PNG")
    assert status("analyze", "uncertainty", *words, "--ood", tmp_path / "noise.npz") == 1
    assert "noise.npz" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["test", "rotated", "permuted"])
def test_a_file_replaces_no_other_images(checkpoint, tmp_path, name):
    (tmp_path / "grey").mkdir()
    file = tmp_path / "grey" / f"{name}.npz"
    np.savez(file, image=np.full((5, 8, 8, 3), 128, np.uint8), label=np.zeros(5, np.int64))
    words = ("--ckpt", checkpoint, "--examples", 9, "--out", tmp_path)
    assert status("analyze", "uncertainty", *words, "--ood", file) == 0
    content = json.loads((tmp_path / "uncertainty.json").read_text())
    assert content["ood"].keys() == {"permuted", "rotated", f"grey/{name}.npz"}
