"""`synthesis-report`: planted copies, the cleaned pool and refused input."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers.cli_runs import status, trained_run
from torch import nn

from lightning_paf.commands import synthesis_report

SMALL = ("--device", "cpu", "--samples", "20")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, next to its `images`."""
    return trained_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def real(run):
    return {name: np.load(run.parent / "images" / f"{name}.npz") for name in ("train", "test")}


def write_pool(path, real):
    """Ten distant samples, then a copy of test image 5, a slightly noisy one of 8, and a copy of training image 3."""
    rng = np.random.default_rng(0)
    distant = rng.integers(0, 256, (10, 8, 8, 3))
    noisy = real["test"]["image"][8] + rng.integers(-1, 2, (8, 8, 3))
    image = np.stack([*distant, real["test"]["image"][5], noisy, real["train"]["image"][3]]).astype(np.uint8)
    np.savez(path, image=image, label=np.arange(13) % 3)
    return path


def test_copies_of_test_images_are_found_and_left_out(run, real, tmp_path, capsys):
    pool, clean = write_pool(tmp_path / "pool.npz", real), tmp_path / "new" / "clean.npz"
    assert (
        status(
            "synthesis-report", pool, "--ckpt", run, *SMALL, "--threshold", "0.01", "--quantile", "0", "--drop", clean
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith("Written: ")) <= 80
    for text in (
        "13 images (8, 8, 3) of 3 classes",
        "against 20 training",
        "class accuracy, pool",
        "in pixels or features: 2\n",
    ):
        assert text in printed
    found = json.loads((tmp_path / "pool_report" / "report.json").read_text())
    assert found["dropped"] == 2
    test, train = (found["leaks"]["pixels"][name] for name in ("test", "training"))
    assert test["near_copies"]["correct"] == 2
    assert [(pair["sample"], pair["index"]) for pair in test["closest"][:2]] == [(10, 5), (11, 8)]
    assert test["closest"][0]["distance"] == 0
    assert 0 < test["closest"][1]["distance"] < 1 / 255
    assert train["near_copies"]["correct"] == 1
    assert (train["closest"][0]["sample"], train["closest"][0]["distance"]) == (12, 0)
    assert found["quality"]["pool, as many"]["samples"] == found["quality"]["test images"]["samples"] == 13
    assert found["class_accuracy"]["pool"]["all"]["total"] == 13
    assert sum(found["class_accuracy"]["pool"][label]["total"] for label in "012") == 13
    for name in ("closest", "distances"):
        assert (tmp_path / "pool_report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    before, after = np.load(pool), np.load(clean)
    kept = [*range(10), 12]
    np.testing.assert_array_equal(after["image"], before["image"][kept])
    np.testing.assert_array_equal(after["label"], before["label"][kept])


def test_a_pool_larger_than_the_test_set_has_a_row_of_equal_size(run, real, tmp_path):
    out = tmp_path / "out"
    options = ("--out", out, "--ckpt", run / "checkpoints" / "last.ckpt", "--device", "cpu")
    assert status("synthesis-report", run.parent / "images" / "train.npz", *options) == 0
    found = json.loads((out / "report.json").read_text())
    assert {name: row["samples"] for name, row in found["quality"].items()} == {
        "test images": 22,
        "pool, as many": 22,
        "pool": 64,
    }
    assert found["quality"]["pool"]["fid"] == pytest.approx(0, abs=1e-3)
    assert found["leaks"]["pixels"]["training"]["near_copies"]["correct"] == 64


def test_a_pool_of_copies_only_is_not_written(run, tmp_path, capsys):
    pool, clean = run.parent / "images" / "test.npz", tmp_path / "clean.npz"
    assert status("synthesis-report", pool, "--ckpt", run, *SMALL, "--out", tmp_path / "out", "--drop", clean) == 0
    assert f"features: 22\nNo sample is left: {clean} was not written.\n" in capsys.readouterr().out
    assert not clean.exists()


class Means(nn.Module):
    """Channel means in place of Inception's features."""

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return x.float().mean((2, 3))


def test_inception_needs_no_classifier(run, real, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis_report, "_inception", Means)
    options = ("--inception", "--dataset", "npz", "--num_classes", "3", "--root", run.parent / "images", *SMALL)
    assert status("synthesis-report", write_pool(tmp_path / "pool.npz", real), *options) == 0
    found = json.loads((tmp_path / "pool_report" / "report.json").read_text())
    assert found["class_accuracy"] == {}
    assert found["features_of"] == "Inception v3"


def test_features_that_are_not_finite_are_refused(run, real, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Means, "forward", lambda self, x: torch.full((len(x), 2), torch.nan))
    monkeypatch.setattr(synthesis_report, "_inception", Means)
    pool = write_pool(tmp_path / "pool.npz", real)
    assert status("synthesis-report", pool, "--inception", "--ckpt", run, *SMALL) == 1
    assert "got NaN or infinity in the pool set" in capsys.readouterr().err


def test_missing_inception_is_one_sentence(tmp_path, monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError("Torch-fidelity is not installed.")

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", missing)
    with pytest.raises(
        ValueError, match=r"--inception must find the package torch-fidelity .* is not installed\. Inst"
    ):
        synthesis_report._network(Namespace(inception=True, device="cpu"), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "got neither --ckpt nor --inception. Pass --ckpt RUN/checkpoints/last.ckpt"),
        (("--inception",), "--dataset must name the real images"),
        (
            ("--inception", "--dataset", "digits", "--data.root", "x"),
            "Options of fit must come with --ckpt, got --data",
        ),
        (("--ckpt", "x", "--dataset", "digits"), "--dataset must be left out with --ckpt, got digits"),
        (("--ckpt", "x", "--drop", "mine.zip"), "--drop must be an npz file, got mine.zip"),
        (("--ckpt", "x", "--drop", "mine.npz"), "mine.npz exists. Pass another --drop."),
        (("--ckpt", "x", "--quantile", "2"), "--quantile: must be at least 0 and at most 1, got 2"),
        (("--ckpt", "missing.ckpt"), "missing.ckpt"),
    ],
)
def test_invalid_options_are_refused(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npz").write_text("mine")
    assert status("synthesis-report", "pool.npz", *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]


@pytest.mark.parametrize(
    ("shape", "label", "message"),
    [
        ((6, 9, 8, 3), 0, "images must have the size of the real ones, (H, W, C) = (8, 8, 3), got (9, 8, 3)"),
        ((6, 8, 8, 1), 0, "images must be uint8 of shape (N, H, W, 3)"),
        ((6, 8, 8, 3), 3, "labels must be 0 to 2, got 3 to 3"),
        ((6, 8, 8, 3), -1, "images must have labels"),
        ((0, 8, 8, 3), 0, "Store at least one image"),
        ((3, 8, 8, 3), 0, "there must be at least 4 images, got 3"),
        (None, 0, "there is no such file"),
    ],
)
def test_pools_that_do_not_match_are_refused_before_any_work(shape, label, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(synthesis_report, "_outputs", None)
    if shape:
        np.savez(tmp_path / "pool.npz", image=np.zeros(shape, np.uint8), label=np.full(shape[0], label))
    assert status("synthesis-report", tmp_path / "pool.npz", "--ckpt", run, "--device", "cpu") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pool_report").exists()
