"""KIP and adv-KIP: objectives, and trainings through the command line."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli_runs import built, status
from helpers.every_task import distillation
from lightning.pytorch import LightningDataModule
from matplotlib.image import imread

from lightning_paf.attacks import PGD
from lightning_paf.functional.losses import squared_error
from lightning_paf.functional.predictions import misclassified
from lightning_paf.loading import load_run
from lightning_paf.nets import KernelClassifier
from lightning_paf.objectives import AdversarialSquaredError, SquaredError
from lightning_paf.specs import dataset_spec
from lightning_paf.tasks import KIP
from lightning_paf.tasks.distillation import balanced_choice, picture

ATTACK = PGD(0.1, step_size=0.025, steps=4, start="none")
LAST = "checkpoints/last.ckpt"


class NoAttack(PGD):
    """An attack without steps."""

    def perturb(self, forward, x, y, loss):
        return x


def kip(objective, attack=ATTACK, **options) -> KIP:
    torch.manual_seed(0)
    net = KernelClassifier(1, 3, image_size=4, support=9)
    return KIP(net, attack, objective, "npz", num_classes=3, channels=1, **options)


def batch(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, brighter in a quadrant that depends on the class."""
    torch.manual_seed(1)
    x, y = 0.5 * torch.rand(n, 1, 4, 4), torch.arange(n) % 3
    for label, (row, column) in enumerate([(0, 0), (0, 2), (2, 0)]):
        x[y == label, :, row : row + 2, column : column + 2] += 0.25
    return x, y


def gradient_and_loss(module: KIP) -> tuple[torch.Tensor, torch.Tensor]:
    loss = module.training_step(batch(), 0)
    return torch.autograd.grad(loss, module.net.images)[0], loss


def test_without_attack_steps_adv_kip_is_kip():
    plain, adversarial = kip(SquaredError()), kip(AdversarialSquaredError(), NoAttack(0.1, step_size=0.1))
    for found, expected in zip(gradient_and_loss(adversarial), gradient_and_loss(plain), strict=True):
        assert torch.equal(found, expected)
    x, y = batch()
    expected = (plain.model(x) - torch.eye(3)[y] + 1 / 3).square().sum(1).mean() / 2
    torch.testing.assert_close(gradient_and_loss(plain)[1], expected)
    assert gradient_and_loss(kip(AdversarialSquaredError()))[1] > expected


@pytest.mark.parametrize("objective", [SquaredError, AdversarialSquaredError])
def test_the_loss_on_a_fixed_batch_decreases_over_fifty_steps(objective):
    module = kip(objective())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    for _ in range(51):
        loss = module.training_step(batch(), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert np.mean(np.diff(losses) < 0) > 0.9
    x, y = batch()
    attacked = ATTACK(module.model, x, y, loss=squared_error)
    assert misclassified(module.model(attacked), y).sum() >= misclassified(module.model(x), y).sum()


def test_a_choice_is_balanced_and_depends_on_its_seed():
    labels, classes = np.array([0, 1, 2, 1, 1, 0, 2, 2, 0]), np.array([0, 1, 2, 0, 1])
    chosen = balanced_choice(labels, classes, 0)
    assert labels[chosen].tolist() == classes.tolist()
    assert len(set(chosen)) == len(chosen)
    assert any(not np.array_equal(chosen, balanced_choice(labels, classes, seed)) for seed in range(1, 5))
    with pytest.raises(ValueError, match=r"at most 9, since class 0 has 3 training images, got 12\. .*support 9 or"):
        balanced_choice(labels, np.arange(12) % 3, 0)
    assert len(balanced_choice(labels, np.arange(9) % 3, 0)) == 9


def test_invalid_sizes_are_refused_without_a_solution_and_with_one_hint(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(KernelClassifier, "_solve")
    assert status("fit", "-c", tiny, "--model.net.support", "5000", "--run", tmp_path / "run") == 1
    assert "support must be at most " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"Pass --model\.net\.image_size 8\.$") as error:
        kip(SquaredError()).check_start(dataset_spec("digits"))
    assert str(error.value).count("Pass ") == 1


def test_a_picture_has_a_row_for_each_class():
    content = picture(torch.zeros(5, 1, 4, 4), np.array([0, 1, 0, 1, 2]))
    height, width = imread(BytesIO(content)).shape[:2]
    assert 200 < height < 400
    assert 200 < width < 400


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return distillation(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert status("fit", "-c", tiny, "--run", folder) == 0
    return folder


def test_a_run_writes_a_pool_of_its_images(run):
    images = torch.load(run / LAST, weights_only=True)["state_dict"]["model.net.images"]
    assert images.min() >= 0
    assert images.max() <= 1
    with np.load(run / "distilled.npz") as pool:
        assert (pool["image"].dtype, pool["label"].tolist()) == (np.uint8, [0, 1, 2, 0, 1, 2])
        found = torch.from_numpy(pool["image"]).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(found, images, atol=0.5 / 255 + 1e-6, rtol=0)
    assert (run / "distilled.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_starts_from_training_images_of_the_right_class(tiny, run, tmp_path):
    words = ("--model.optimizer.lr", "1e-12", "--trainer.max_epochs", "1", "--run", tmp_path / "run")
    assert status("fit", "-c", tiny, *words) == 0
    with (
        np.load(tmp_path / "run" / "distilled.npz") as pool,
        np.load(Path(tiny).parent / "images" / "train.npz") as real,
    ):
        for image, label in zip(pool["image"], pool["label"], strict=True):
            (found,) = np.flatnonzero((real["image"] == image).all((1, 2, 3)))
            assert real["label"][found] == label
    start = built("-c", tiny, "--model.init", run / LAST).model
    assert torch.equal(start.net.images, load_run(run / LAST).module.net.images)


def test_a_network_is_trained_on_the_pool_alone(run, tiny, tmp_path):
    images = ("--data.dataset", "npz", "--data.num_classes", "3", "--data.root", Path(tiny).parent / "images")
    pool = ("--data.synthetic", run / "distilled.npz", "--data.real_fraction", "0", "--data.epoch", "32")
    sizes = ("--data.batch_size", "16", "--data.val_size", "12", "--data.num_workers", "0")
    model = ("--model.net", "SmallConvNet", "--model.attack", "PGD", "--model.objective", "Natural")
    trainer = ("--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false")
    assert status("fit", *images, *pool, *sizes, *model, *trainer, "--run", tmp_path / "run") == 0


def test_a_test_evaluates_robustness_and_writes_the_images_of_the_checkpoint(run, capsys):
    attack = ("--autoattack", "RobustEval", "--autoattack.name", "square", "--autoattack.attack", "Square")
    assert status("test", "--run", run, "--ckpt_path", "best", *attack, "--autoattack.attack.queries", "5") == 0
    assert "test/acc_square" in capsys.readouterr().out
    assert (run / "test" / "distilled.npz").is_file()
    assert list((run / "test").glob("square*.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.net.image_size", "4"], "Pass --model.net.image_size 8"),
        (["--model.net.support", "2"], "support must be at least 3, got 2"),
        (["--model.net.support", "120"], "support must be at most"),
        (["--model.net", "SmallConvNet"], "net must be a KernelClassifier for KIP, got SmallConvNet"),
        (["--model.attack.eps", "0"], "eps must be positive and finite"),
        (["--data.val_size", "40"], "val_size must be 1 to 32"),
    ],
)
def test_bad_options_are_refused_in_one_line(words, message, tiny, tmp_path, capsys):
    assert status("fit", "-c", tiny, *words, "--run", tmp_path / "run") in (1, 2)
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error


def test_training_without_the_data_module_is_refused():
    module = kip(SquaredError())
    module._trainer = type("Fake", (), {"datamodule": LightningDataModule(), "callbacks": []})()
    with pytest.raises(TypeError, match="RobustDataModule, got LightningDataModule"):
        module._start()


def test_onnx_export_is_refused_in_one_line(run, tmp_path, capsys):
    pytest.importorskip("onnx")
    assert status("export", "--ckpt", run / LAST, "--out", tmp_path / "out", "--formats", "onnx") == 1
    assert "no kernel regression for an ONNX file" in capsys.readouterr().err


def test_the_recipe_of_digits_builds():
    cli = built("-c", "distillation/digits")
    assert type(cli.model.objective) is AdversarialSquaredError
    assert cli.model.net.images.shape == (100, 1, 8, 8)
    assert sum(p.numel() for p in cli.model.parameters()) == 6400
