"""Common corruptions: closed forms, published files and files that do not fit."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.cli_runs import status

from lightning_paf.analysis.corruptions import PublishedCorruptions, draw_errors, error_of, mean_error
from lightning_paf.functional.corruptions import SEVERITIES, blur, contrast, jpeg

SHAPE = (3, 8, 8)


@pytest.fixture
def folder(tmp_path):
    """Two corruptions of 4 images: `fog` has the brightness of the severity, `frost` is black."""
    images = np.zeros((20, 8, 8, 3), np.uint8)
    np.save(tmp_path / "frost.npy", images)
    np.save(tmp_path / "fog.npy", images + np.repeat(np.arange(5, dtype=np.uint8), 4)[:, None, None, None] * 51)
    np.save(tmp_path / "labels.npy", np.tile([0, 1, 1, 1], 5).astype(np.uint8))
    return tmp_path


def run_of(model):
    return SimpleNamespace(model=model, device=torch.device("cpu"))


def test_published_files_are_read_by_severity(folder):
    published = PublishedCorruptions(folder, SHAPE, 2)
    assert [*published.images] == ["fog", "frost"]
    for severity in range(1, 6):
        ((x, y),) = published.batches("fog", severity)
        assert x.shape == (4, *SHAPE)
        assert x.unique().tolist() == pytest.approx([(severity - 1) / 5])
        assert y.tolist() == [0, 1, 1, 1]
    bright = run_of(lambda x: torch.stack([torch.full((len(x),), 0.5), x.mean((1, 2, 3))], dim=1))  # class 1 if bright
    errors = [error_of(bright, published.batches("fog", severity)) for severity in range(1, 6)]
    assert errors == [0.75, 0.75, 0.75, 0.25, 0.25]
    assert error_of(bright, PublishedCorruptions(folder, SHAPE, 2, examples=1).batches("fog", 1)) == 0


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("labels", np.zeros(20), "labels.npy must hold labels below 2"),
        ("labels", np.arange(20) % 3, "labels.npy must hold labels below 2"),
        ("labels", np.arange(19) % 2, "labels.npy must hold labels below 2"),
        ("labels", np.arange(20) // 10, "the same ones 5 times"),
        ("fog", np.zeros((10, 8, 8, 3), np.uint8), r"shape \(20, 8, 8, 3\), got uint8 of shape \(10, 8, 8, 3\)"),
        ("fog", np.zeros((20, 9, 9, 3), np.uint8), r"fog.npy must hold uint8 images of shape \(20, 8, 8, 3\)"),
        ("fog", np.zeros((20, 8, 8, 3)), "got float64"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, name, array, message):
    np.save(folder / f"{name}.npy", array)
    with pytest.raises(ValueError, match=message):
        PublishedCorruptions(folder, SHAPE, 2)


def test_damaged_and_missing_files_are_refused(folder):
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"fog.npy must be a file of the published corruptions"):
        PublishedCorruptions(folder, SHAPE, 2)
    with pytest.raises(ValueError, match=r"labels.npy must be a file of the published corruptions"):
        PublishedCorruptions(folder / "none", SHAPE, 2)
    for file in ("fog.npy", "frost.npy"):
        (folder / file).unlink()
    with pytest.raises(ValueError, match="must hold files such as fog"):
        PublishedCorruptions(folder, SHAPE, 2)


def test_the_mean_error_is_plain_or_relative():
    errors, baseline = {"fog": [0.1, 0.3], "snow": [0.2, 0.2]}, {"fog": [0.4, 0.4], "snow": [0.1, 0.1]}
    assert mean_error(errors) == pytest.approx(0.2)
    assert mean_error(errors, baseline) == pytest.approx((0.5 + 2) / 2)
    assert mean_error(errors, errors) == pytest.approx(1)
    with pytest.raises(ValueError, match="--baseline must have an error for snow"):
        mean_error(errors, {"fog": [1.0]})


def test_corruptions_have_closed_limits():
    x = torch.rand(2, 3, 8, 8)
    grey = torch.full((2, 3, 8, 8), 0.4)
    torch.testing.assert_close(contrast(x, 1.0), x)
    torch.testing.assert_close(contrast(x, 0.0), x.mean((2, 3), keepdim=True).expand_as(x))
    torch.testing.assert_close(blur(grey, 1.5), grey)
    torch.testing.assert_close(jpeg(grey, 80), grey, atol=2 / 255, rtol=0)
    assert (jpeg(x, 10) - x).abs().mean() > (jpeg(x, 95) - x).abs().mean() > 0
    for channels in (1, 2, 4):
        assert jpeg(torch.rand(2, channels, 8, 8), 50).shape == (2, channels, 8, 8)


@pytest.mark.parametrize("name", SEVERITIES)
def test_severities_move_images_further_and_keep_the_range(name):
    corrupt, levels = SEVERITIES[name]
    x = torch.rand(16, 3, 8, 8) / 2 + 0.2
    found = [corrupt(x, level) for level in levels]
    moved = [float((z - x).square().mean()) for z in found]
    assert len(levels) == 5
    assert all(z.min() >= 0 and z.max() <= 1 for z in found)
    assert moved == sorted(moved)


def test_a_run_is_analysed(checkpoint, tmp_path, capsys):
    words = ("analyze", "corruptions", "--ckpt", checkpoint, "--examples", 6, "--out", tmp_path)
    assert status(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-2])) <= 80
    content = json.loads((tmp_path / "corruptions.json").read_text())
    assert content["errors"].keys() == SEVERITIES.keys()
    assert content["mean_error"] == pytest.approx(np.mean([*content["errors"].values()]))
    assert (tmp_path / "corruptions.png").read_bytes().startswith(b"\x89PNG")
    assert status(*words, "--data.corruptions", tmp_path) == 1
    assert "labels.npy must be a file of the published corruptions" in capsys.readouterr().err
    assert status(*words, "--baseline", tmp_path / "corruptions.png") == 1
    assert "--baseline must be a file that `analyze corruptions` wrote" in capsys.readouterr().err


def test_the_figure_has_a_row_for_each_corruption():
    axes = draw_errors({"fog": [0.1] * 5, "jpeg_compression": [0.5] * 5}, "title").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fog", "jpeg compression"]
    assert len(axes.texts) == 10
