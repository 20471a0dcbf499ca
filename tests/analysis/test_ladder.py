"""LADDER on the command line: from a trained run to images, and to a training on them."""

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


@pytest.fixture(scope="module")
def pool(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("ladder") / "new" / "pool.npz"
    assert ladder(checkpoint, path, "--eps", 0.5, "--seed", 1) == 0
    return path


def test_images_figure_and_report(pool):
    assert {file.name for file in pool.parent.iterdir()} == {"pool.npz", "pool.json", "pool.png"}
    archive, report = np.load(pool), json.loads(pool.with_suffix(".json").read_text())
    assert archive["image"].shape == (15, 8, 8, 3)
    assert np.bincount(archive["label"]).tolist() == [5, 5, 5]
    assert report["eps"] == 0.5
    assert report["score after, attention held"] > report["score before"]


@pytest.mark.parametrize(("seed", "equal"), [(1, True), (2, False)])
def test_seed_determines_the_images(pool, checkpoint, tmp_path, seed, equal, capsys):
    before = checkpoint.read_bytes()
    assert ladder(checkpoint, tmp_path / "pool.npz", "--eps", 0.5, "--seed", seed) == 0
    assert "class changed by the move" in capsys.readouterr().out
    assert np.array_equal(np.load(tmp_path / "pool.npz")["image"], np.load(pool)["image"]) == equal
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    "options", [("--eps", 1, "--no-attention"), ("--adaptive", 0.5, 0.1, 2, "--random-directions")]
)
def test_controls_and_adaptive_lengths_run(checkpoint, tmp_path, options):
    assert ladder(checkpoint, tmp_path / "pool.npz", *options) == 0


def test_untrained_generator_raises_a_warning(tmp_path, capsys):
    longer = ("--model.objective", "Natural", "--trainer.max_epochs", 10, "--run", tmp_path / "run")
    assert status("fit", "-c", write_experiment(tmp_path), *longer) == 0
    capsys.readouterr()
    trained = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert ladder(trained, tmp_path / "pool.npz", "--eps", 1, "--epochs", 1) == 0
    printed = capsys.readouterr().out
    assert "Warning: the network classifies" in printed
    assert "--epochs 200" in printed
    assert ladder(trained, tmp_path / "pool.npz", "--eps", 1, "--epochs", 60, "--width", 8, "--force") == 0
    assert "Warning" not in capsys.readouterr().out


def test_network_is_fine_tuned_on_the_images(pool, run, checkpoint, tmp_path):
    mix = ("--data.synthetic", pool, "--data.real_fraction", 0.5, "--model.objective", "Natural")
    words = ("fit", "-c", run.parent / "tiny.yaml", *mix, "--model.init", checkpoint, "--run", tmp_path / "tuned")
    assert status(*words) == 0
    tuned, before = (torch.load(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (tmp_path / "tuned", run))
    changes = [(tuned[key] - value).abs().max() for key, value in before.items() if value.is_floating_point()]
    assert 0 < max(changes) < 1


def test_loss_of_a_mixed_batch_is_the_mean_of_both_halves():
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


def test_existing_file_is_kept(checkpoint, tmp_path, capsys):
    (tmp_path / "pool.npz").write_text("mine")
    assert ladder(checkpoint, tmp_path / "pool.npz", "--eps", 1) == 1
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "pool.npz").read_text() == "mine"
