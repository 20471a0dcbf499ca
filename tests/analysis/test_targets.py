"""Success rates of targeted attacks by pair."""

import json

import numpy as np
import torch
from helpers.cli_runs import status
from torch import nn

from lightning_paf.analysis.targets import ATTACKS, counts_of, draw_rates
from lightning_paf.evaluation import Evaluation, Samples


def test_a_barrier_that_only_one_target_crosses():
    """Class 2 is out of reach of eps; classes 0 and 1 reach each other."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)
    net[1].weight.zero_()
    net[1].weight[0, 0], net[1].weight[1, 0] = 1, -1
    net[1].bias.copy_(torch.tensor([-0.5, 0.5, -5]))
    x = torch.full((4, 1, 8, 8), 0.5)
    x[:, 0, 0, 0] = torch.tensor([0.6, 0.4, 0.6, 0.4])
    samples = Samples.of(x, torch.tensor([0, 1, 0, 0]))  # the last is misclassified
    for make in ATTACKS.values():
        results = [Evaluation(net, make(0.2, norm="linf", target=target), samples).run() for target in range(3)]
        attacked, fooled = counts_of(results, 3)
        assert attacked.tolist() == [[0, 2, 2], [1, 0, 1], [0, 0, 0]]
        assert fooled.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 0]]


def test_the_figure_leaves_the_diagonal_empty():
    rates = np.array([[np.nan, 0.25], [1.0, np.nan]])
    axes = draw_rates(rates, ["cat", "dog"], "title").axes[0]
    assert [text.get_text() for text in axes.texts] == ["25", "100"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]


def test_a_run_is_analysed_and_tested_with_targets(run, checkpoint, tmp_path, capsys):
    words = ("--ckpt", checkpoint, "--examples", 8, "--attack", "pgd", "--out", tmp_path)
    assert status("analyze", "targets", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-2])) <= 80
    content = json.loads((tmp_path / "targets.json").read_text())
    assert np.trace(content["attacked"]) == 0
    assert (tmp_path / "targets.png").read_bytes().startswith(b"\x89PNG")
    attack = ("--val_attack.attack", "PGD", "--val_attack.attack.steps", 20, "--val_attack.attack.target", 1)
    assert status("test", "--ckpt_path", checkpoint, "--run", tmp_path / "run", *attack) == 0
    (result,) = (tmp_path / "run").rglob("pgd*.json")
    content = json.loads(result.read_text())
    assert content["attack"]["target"] == 1
    assert {row["target"] for row in content["per_pair"]} == {1}
    assert "classified as the target" in result.with_suffix(".html").read_text()
    assert status("test", "--ckpt_path", checkpoint, "--run", tmp_path, *attack[:-1], 10) == 1
    assert "target must be a class from 0 to 2, got 10" in capsys.readouterr().err
