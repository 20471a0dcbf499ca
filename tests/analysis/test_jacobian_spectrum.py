"""`analyze jacobian-spectrum` of a trained vision transformer, and the callback during its training."""

import csv
import json

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.fakes import spec

from lightning_paf.analysis.jacobian_spectrum import growth
from lightning_paf.callbacks import JacobianSpectrum
from lightning_paf.loading import load_run
from lightning_paf.nets import ViT
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.jacobian_spectrum import jacobian_spectrum

SMALL = {"image_size": 8, "patch": 4, "width": 8, "depth": 2, "heads": 2}
NET = ["--model.net", "ViT", *(word for name, size in SMALL.items() for word in (f"--model.net.{name}", str(size)))]
CALLBACK = ["--trainer.callbacks+=JacobianSpectrum", "--trainer.callbacks.iterations", "5"]


@pytest.fixture(scope="module")
def vit_run(tmp_path_factory):
    """A run of one epoch with the callback, in bfloat16, with PSSiLU instead of GELU."""
    folder = tmp_path_factory.mktemp("vit")
    words = ["-c", write_experiment(folder), *NET, *CALLBACK, "--trainer.precision", "bf16-mixed"]
    assert status("fit", *words, "--run", folder / "run") == 0
    return folder / "run"


def test_the_callback_logs_the_values_of_the_validation_images(vit_run):
    rows = list(csv.DictReader((vit_run / "metrics.csv").open()))
    (logged,) = [row for row in rows if row["jacobian/head"]]
    loaded = load_run(vit_run / "checkpoints" / "last.ckpt")
    loaded.datamodule.setup("fit")
    dataset = loaded.datamodule.val_dataloader().dataset
    images = dataset.__getitems__(list(range(8))).images.permute(0, 3, 1, 2) / 255
    found = jacobian_spectrum(loaded.model, images, 5)
    assert float(logged["jacobian/embedding"]) == pytest.approx(float(found.embedding.mean()), rel=1e-3)
    assert float(logged["jacobian/blocks.1"]) == pytest.approx(float(found.blocks["blocks.1"].mean()), rel=1e-3)
    assert float(logged["jacobian/log_bound"]) == pytest.approx(float(found.log_bounds()["product"].mean()), rel=1e-3)


def test_the_analysis_writes_a_figure_and_all_values(vit_run, capsys):
    words = ("--examples", "4", "--iterations", "20")
    assert status("analyze", "jacobian-spectrum", "--ckpt", vit_run / "checkpoints" / "last.ckpt", *words) == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("Written: "))
    assert "at 4 images" in printed
    assert "measured, PGD linf eps 8/255" in printed
    content = json.loads((vit_run / "jacobian_spectrum" / "jacobian_spectrum.json").read_text())
    assert (vit_run / "jacobian_spectrum" / "jacobian_spectrum.png").read_bytes().startswith(b"\x89PNG")
    assert list(content["blocks"]) == list(content["residual"]) == ["blocks.0", "blocks.1"]
    assert len(content["branches"]) == 4
    product = torch.tensor([*content["blocks"].values()]).log().sum(0)
    torch.testing.assert_close(torch.tensor(content["log_bounds"]["product"]), product)
    measured = torch.tensor(content["growth"])
    assert measured.shape == (3, 4)
    assert torch.equal(measured[0], torch.ones(4))
    assert (measured[-1].log() <= product).all()


def test_growth_is_that_of_the_distance_of_two_forward_passes():
    torch.manual_seed(0)
    model, x = Classifier(ViT(**SMALL), spec()).eval(), torch.rand(3, 3, 8, 8)
    x_adv = torch.cat([x[:2] + 0.1, x[2:]])
    found = growth(model, x, x_adv)
    tokens = [model.net.patches((images - 0.5) / 0.25).flatten(1) for images in (x, x_adv)]
    assert (tokens[1] - tokens[0]).norm(dim=1)[2] == 0
    assert found[:, 2].isnan().all(), "images that are equal have no growth"
    assert (found[0, :2] == 1).all()
    assert (found[1:, :2] > 0).all()


def test_an_attack_that_changes_no_image_is_refused(vit_run, capsys):
    words = ("--examples", "2", "--iterations", "1", "--model.attack.eps", "1e-9")  # below rounding
    assert status("analyze", "jacobian-spectrum", "--ckpt", vit_run / "checkpoints" / "last.ckpt", *words) == 1
    assert "must change an image, got none of 2 changed by PGD. Pass another" in capsys.readouterr().err


def test_a_network_without_residual_blocks_is_refused_before_training(tmp_path, capsys):
    assert status("fit", "-c", write_experiment(tmp_path), *CALLBACK, "--run", tmp_path / "run") == 1
    captured = capsys.readouterr()
    assert "must have residual blocks that each run once, got SmallConvNet" in captured.err
    assert "epoch 1/1" not in captured.out


def test_a_network_without_residual_blocks_is_refused(checkpoint, capsys):
    assert status("analyze", "jacobian-spectrum", "--ckpt", checkpoint) == 1
    assert "must have residual blocks that each run once, got SmallConvNet" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["every_n_epochs", "max_examples", "iterations"])
def test_numbers_below_one_are_refused(option):
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0. Pass {option}: 1"):
        JacobianSpectrum(**{option: 0})
