"""`mean-sparse` of a small run, whose result is evaluated like any other."""

import json

import pytest
import torch
from helpers.cli_runs import status, trained_run

from lightning_paf.commands.mean_sparse import Point, chosen
from lightning_paf.loading import load_run


def test_the_most_robust_point_with_little_loss_is_chosen():
    points = [Point(0, 0.9, 0.5), Point(0.1, 0.895, 0.55), Point(0.2, 0.89, 0.55), Point(0.3, 0.8, 0.7)]
    assert chosen(points, 0.01) == points[1]
    assert chosen(points, 0.2) == points[3]
    assert chosen(points, 0.0) == points[0]


def test_a_run_is_sparsified_checked_and_evaluated(tmp_path, capsys):
    run, out = trained_run(tmp_path), tmp_path / "sparse"
    words = ("mean-sparse", run, "--grid", 0.2, "--drop", 1, "--steps", 2, "--examples", 8)
    capsys.readouterr()
    assert status(*words, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if "sparse" not in line) <= 80
    assert status(*words, "--out", out) == 1
    assert "--out must be a folder without a run" in capsys.readouterr().err
    checkpoint = out / "checkpoints" / "mean_sparse.ckpt"
    found = load_run(checkpoint)
    sites = found.model.net.sites()
    assert sites
    assert all(site.std.numel() > 1 and site.std.min() > 0 for site in sites.values())
    content = torch.load(checkpoint, weights_only=True)
    alphas = [float(site.alpha) for site in sites.values()]
    assert alphas == pytest.approx([content["mean_sparse"]["alpha"]] * len(sites))
    assert status("test", "--ckpt_path", checkpoint) == 0
    (result,) = (out / "test").glob("pgd*.json")
    assert json.loads(result.read_text())["robust"]["total"] == 22
    assert status("sanity-check", "--ckpt", checkpoint, "--examples", 20) in (0, 1)
    assert "checks" in capsys.readouterr().out
