"""From a trained run to images, to a training on them."""

import json

import numpy as np
import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.fakes import images, spec

from lightning_paf.attacks import PGD
from lightning_paf.nets import SmallConvNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives import Natural

QUICK = ("--epochs", 2, "--width", 4, "--svm-images", 6, "--per-class", 5)


def ladder(checkpoint, out, *options):
    return status("analyze", "ladder", "--ckpt", checkpoint, "--out", out, *QUICK, *options)


def test_images_figure_and_report(checkpoint, tmp_path, capsys):
    before = checkpoint.read_bytes()
    assert ladder(checkpoint, tmp_path / "new" / "pool.npz", "--eps", 0.5) == 0
    assert "class changed by the move" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"pool.npz", "pool.json", "pool.png"}
    pool, report = np.load(tmp_path / "new" / "pool.npz"), json.loads((tmp_path / "new" / "pool.json").read_text())
    assert pool["image"].shape == (15, 8, 8, 3)
    assert np.bincount(pool["label"]).tolist() == [5, 5, 5]
    assert report["eps"] == 0.5
    assert report["score after, attention held"] > report["score before"]
    assert checkpoint.read_bytes() == before


def test_the_seed_decides(checkpoint, tmp_path):
    options = {"a": ["--seed", 1], "b": ["--seed", 1], "c": ["--seed", 2]}
    for name, words in options.items():
        assert ladder(checkpoint, tmp_path / f"{name}.npz", "--adaptive", 0.5, 0.1, 2, *words) == 0
    a, b, c = (np.load(tmp_path / f"{name}.npz")["image"] for name in options)
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@pytest.mark.parametrize("control", ["--no-attention", "--random-directions"])
def test_controls_run(checkpoint, tmp_path, control):
    assert ladder(checkpoint, tmp_path / "pool.npz", "--eps", 1, control) == 0


def test_a_generator_that_has_learned_nothing_is_noticed(tmp_path, capsys):
    longer = ("--model.objective", "Natural", "--trainer.max_epochs", 20, "--run", tmp_path / "run")
    assert status("fit", "-c", write_experiment(tmp_path), *longer) == 0
    capsys.readouterr()
    trained = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert ladder(trained, tmp_path / "pool.npz", "--eps", 1, "--epochs", 1) == 0
    said = capsys.readouterr().out
    assert "Warning: the network classifies" in said
    assert "--epochs 200" in said
    assert ladder(trained, tmp_path / "pool.npz", "--eps", 1, "--epochs", 100, "--width", 8, "--force") == 0
    assert "Warning" not in capsys.readouterr().out


def test_a_network_is_fine_tuned_on_them(run, checkpoint, tmp_path):
    assert ladder(checkpoint, tmp_path / "pool.npz", "--eps", 0.5) == 0
    mix = ("--data.synthetic", tmp_path / "pool.npz", "--data.real_fraction", 0.5, "--model.objective", "Natural")
    words = ("fit", "-c", run.parent / "tiny.yaml", *mix, "--model.init", checkpoint, "--run", tmp_path / "tuned")
    assert status(*words) == 0
    tuned, before = (torch.load(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (tmp_path / "tuned", run))
    changes = [(tuned[key] - value).abs().max() for key, value in before.items() if value.is_floating_point()]
    assert 0 < max(changes) < 1


def test_the_loss_of_a_mixed_batch_is_half_of_either():
    torch.manual_seed(0)
    model, (x, y) = Classifier(SmallConvNet(3, width=4), spec()), images()
    moved = (x + 0.1).clamp(0, 1)

    def gradients(x, y):
        model.zero_grad()
        Natural()(model, x, y, PGD()).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    together = gradients(torch.cat([moved, x]), torch.cat([y, y]))
    for both, one, other in zip(together, gradients(moved, y), gradients(x, y), strict=True):
        torch.testing.assert_close(both, (one + other) / 2, atol=1e-6, rtol=1e-4)


def test_an_existing_file_is_kept(checkpoint, tmp_path, capsys):
    (tmp_path / "pool.npz").write_text("mine")
    assert ladder(checkpoint, tmp_path / "pool.npz", "--eps", 1) == 1
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "pool.npz").read_text() == "mine"
