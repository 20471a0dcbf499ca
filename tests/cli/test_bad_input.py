"""Bad input: a clear error before training, nonzero exit, no file overwritten."""

import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.cli_runs import built, parser_error, status, trained_run, write_experiment
from helpers.fakes import images, tiny_classifier

from lightning_paf.attacks import FGSM, PGD
from lightning_paf.data import RobustDataModule


@pytest.fixture
def tiny(tmp_path) -> str:
    return write_experiment(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return trained_run(tmp_path_factory.mktemp("trained"))


def fit_error(capsys, run: Path, *words: str | Path) -> str:
    """Return the error of `fit WORDS`, which must write no checkpoint."""
    assert status("fit", *words, "--run", run) == 1
    assert not (run / "checkpoints").exists()
    assert not (run / "metrics.csv").exists()
    output = capsys.readouterr().err
    assert "Traceback" not in output
    error = output[output.index("error: ") + len("error: ") :]
    return " ".join(error.split())


# ------------------------------------------------------------------ images and labels


def arrays(n: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (n, 8, 8, 3), np.uint8), "label": np.arange(n) % 3}


def save(path: Path, **changed) -> None:
    np.savez(path, **{key: value for key, value in {**arrays(), **changed}.items() if value is not None})


def truncated(path: Path) -> None:
    save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(**arrays_of) -> Callable[[Path], None]:
    """Write a valid file except for these arrays."""
    return lambda path: save(path, **arrays_of)


IMAGE = arrays()["image"]
BAD_FILES = {
    "missing": (lambda path: path.unlink(missing_ok=True), "there is no such file"),
    "zero length": (lambda path: path.write_bytes(b""), r"the file is empty \(0 bytes\)"),
    "truncated": (truncated, "damaged, or not an npz file"),
    "wrong keys": (
        changed(image=None, pictures=IMAGE),
        r"must hold the arrays image \+ label .* got label, pictures",
    ),
    "float images": (changed(image=IMAGE / 255), r"must be uint8 .* got float64"),
    "channels first": (changed(image=IMAGE.transpose(0, 3, 1, 2).copy()), "This is NCHW"),
    "label too large": (changed(label=np.arange(12)), "labels must be 0 to 2, got 0 to 11"),
    "label negative": (changed(label=np.arange(12) % 3 - 1), "labels must be 0 to 2, got -1 to 1"),
    "other number of labels": (changed(label=np.arange(11) % 3), r"labels of 12 images must have shape .* got \(11,\)"),
    "empty": (changed(**arrays(n=0)), "Store at least one image"),
    "fewer classes": (changed(label=np.arange(12) % 2), "all 3 classes must occur, .* no image of 2"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_training_images(spoil, message, tiny, tmp_path, capsys):
    spoil(tmp_path / "images" / "train.npz")
    error = fit_error(capsys, tmp_path / "run", "-c", tiny)
    assert re.search(message, error)
    assert "images/train.npz" in error or "images, training set" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", ["missing", "truncated", "wrong keys", "label too large", "fewer classes"])
def test_bad_synthetic_images(fault, tiny, tmp_path, capsys):
    spoil, message = BAD_FILES[fault]
    pool = tmp_path / "pool.npz"
    spoil(pool)
    before = set(tmp_path.rglob("*"))
    words = ["--data.synthetic", pool, "--data.real_fraction", "0.5"]
    error = fit_error(capsys, tmp_path / "run", "-c", tiny, *words)
    assert re.search(message, error)
    assert str(pool) in error
    # Missing classes are found only after the conversion.
    assert fault == "fewer classes" or set(tmp_path.rglob("*")) == before


def test_synthetic_images_of_another_size(tiny, tmp_path, capsys):
    np.savez(tmp_path / "pool.npz", image=np.zeros((6, 4, 4, 3), np.uint8), label=np.arange(6) % 3)
    words = ["--data.synthetic", tmp_path / "pool.npz", "--data.real_fraction", "0.5"]
    error = fit_error(capsys, tmp_path / "run", "-c", tiny, *words)
    assert "the size of the real ones, (H, W, C) = (8, 8, 3), got (4, 4, 3)" in error


def test_bad_test_images_are_refused_before_the_training(tiny, tmp_path, capsys):
    save(tmp_path / "images" / "test.npz", image=np.zeros((12, 4, 4, 3), np.uint8))
    assert "test set: images must have the size" in fit_error(capsys, tmp_path / "run", "-c", tiny)


def test_a_small_pool_sorted_by_class_is_shuffled_and_repeated(tiny, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "pool.npz", image=image, label=np.repeat(np.arange(3), 3))
    words = ["--data.synthetic", tmp_path / "pool.npz", "--data.real_fraction", "0.25"]
    assert status("fit", "-c", tiny, *words, "--run", tmp_path / "run") == 0
    mixed = {"synthetic": tmp_path / "pool.npz", "real_fraction": 0.25, "batch_size": 16}
    data = RobustDataModule("npz", tmp_path / "images", 3, val_size=12, num_workers=0, **mixed)
    data.prepare_data()
    data.setup("fit")
    labels = [batch.labels[batch.synthetic].tolist() for batch in data.train_dataloader()]
    assert all(len(batch) == 12 for batch in labels)
    assert sum(len(set(batch)) == 3 for batch in labels) > len(labels) / 2
    assert all(batch != sorted(batch) for batch in labels)


# ------------------------------------------------------------------ inconsistent numbers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.batch_size 0", "batch_size must be from 1 to 2^31 - 1, got 0. Pass another --data.batch_size"),
        ("--data.real_fraction 0.5", "data.synthetic must be set for real_fraction=0.5, got none"),
        ("--data.real_fraction 1.5", "real_fraction must be from 0 to 1, got 1.5"),
        ("--data.val_size 1000", "val_size must be 1 to 32, half of the 64 training images, got 1000"),
        ("--trainer.max_epochs -1", "got max_epochs=-1. Pass --trainer.max_epochs or --trainer.max_steps"),
        (
            "--checkpoint.monitor val/acc_pgdx",
            "training logs, got val/acc_pgdx. Pass one of val/acc, val/acc_pgd,",
        ),
        ("--model.schedule Plateau --model.schedule.monitor val/acc_pgdx", "model.schedule.monitor must be a metric"),
        ("--model.schedule OneCycle --model.schedule.low_momentum 0.85 --model.optimizer Adam", "got Adam without one"),
        ("--val_attack.every_n_epochs 0 --checkpoint.monitor val/acc_pgd", "one of val/acc, train/loss"),
        ("--averaging WarmupEMA --averaging.decay 1.5", "decay must be in [0, 1), got 1.5"),
        ("--model.attack.eps 8", "eps must be at most 1 times the pixel range in linf, got 8.0 for images in [0, 1]."),
        ("--model.attack.eps 0", "eps must be positive and finite, got 0.0. Pass a perturbation size such as 8/255"),
        ("--model.attack.eps=-8/255", "eps must be positive and finite, got -8/255"),
        ("--val_attack.attack.eps 8", "Pass 8/255 for grey levels."),
        (
            "--model.net TimmNet --model.net.name resnet-18",
            "timm has no network called 'resnet-18'. Did you mean resnet18",
        ),
    ],
)
def test_inconsistent_numbers(words, message, tiny, tmp_path, capsys):
    assert message in fit_error(capsys, tmp_path / "run", "-c", tiny, *words.split())


ODE = "ODENet --model.net.width 8 --model.net.groups 4"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("TisODENet --model.net.width 5 --model.net.groups 2", "groups must divide the 5 channels of the group norm"),
        (f"{ODE} --model.net.t_end 0", "t_end must be finite and > 0, got 0.0. Pass --model.net.t_end 1.0"),
        (f"{ODE} --model.net.step 0.3", "t_end must be a multiple of the step 0.3, got 1. Pass --model.net.step 0.333"),
        ("ViT --model.net.image_size 8 --model.net.patch 16", "must be at least 1 and divide image_size, got patch=16"),
        ("CoViT --model.net.width 8 --model.net.kernels [3,3,3]", "a multiple of the number of kernels, got 8 for 3"),
        ("ZeroSNet --model.net.width 0", "width must be at least 1, got 0. Pass another --model.net.width"),
    ],
)
def test_sizes_that_a_network_cannot_have(words, message, tiny, tmp_path, capsys):
    assert message in fit_error(capsys, tmp_path / "run", "-c", tiny, "--model.net", *words.split())


def test_a_scheme_that_is_not_zero_stable_is_a_warning_with_its_largest_root(tiny, caplog):
    built("-c", tiny, "--model.net", "ZeroSNet", "--model.net.depth", "8", "--model.net.coefficients", "[1, 1, 1, 1]")
    assert "not zero-stable" in caplog.text
    assert "the largest extraneous root has modulus 1.839" in caplog.text


@pytest.mark.parametrize("eps", ["abc", "8/0", "nan"])
def test_an_eps_that_is_not_a_number(eps, tiny, capsys):
    error = parser_error(capsys, "-c", tiny, "--model.attack.eps", eps)
    assert 'Parser key "eps"' in error


def test_steps_that_cannot_cross_the_ball_are_a_warning(tiny, tmp_path):
    with pytest.warns(UserWarning, match=r"2 steps of 1/255 are shorter than eps=8/255. Raise steps or step_size"):
        built("-c", tiny, "--model.attack.step_size", "1/255")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "PGD cannot")
        built("-c", tiny, "--model.attack.step_size", "4/255")


@pytest.mark.parametrize("attack", [FGSM(), PGD(Fraction(8, 255), steps=1, step_size=1.0)])
def test_pixels_outside_the_unit_interval(attack):
    x, y = images()
    with pytest.raises(ValueError, match=r"Pixels must lie in \[0, 1\] .*normalisation belongs inside the model"):
        attack(tiny_classifier(), x * 255, y)


def test_a_batch_that_does_not_divide_by_the_ranks(tmp_path, tiny):
    data = RobustDataModule("npz", tmp_path / "images", 3, real_fraction=1.0, batch_size=16, val_size=12, num_workers=0)
    data.trainer = SimpleNamespace(world_size=3, global_rank=0)
    with pytest.raises(
        ValueError, match=r"batch_size must be a multiple of the 3 devices, got 16. Pass --data.batch_size 15"
    ):
        data.setup("fit")


# ------------------------------------------------------------------ checkpoints


class TouchesFile:
    """A pickle that runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def malicious_pickle(path: Path, touched: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": TouchesFile(touched)}))


def malicious_archive(path: Path, touched: Path) -> None:
    torch.save({"state_dict": TouchesFile(touched), "pytorch-lightning_version": "2.6.4"}, path)


@pytest.mark.parametrize(("command", "make"), [("fit", malicious_pickle), ("test", malicious_archive)])
def test_a_pickle_is_not_unpickled(make, command, trained, tmp_path, capsys):
    make(tmp_path / "evil.ckpt", tmp_path / "touched")
    words = ["-c", trained / "config.yaml", "--ckpt_path", tmp_path / "evil.ckpt", "--run", tmp_path / "run"]
    assert status(command, *words) == 1
    error = capsys.readouterr().err
    assert re.search(r"evil.ckpt (is damaged|holds objects that are not plain values \(posix.system\))", error)
    assert "Objects are not unpickled because that can run any code." in error
    assert "Traceback" not in error
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "run").exists()


def half(trained: Path, path: Path) -> None:
    content = (trained / "checkpoints" / "last.ckpt").read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_other_weights(trained: Path, path: Path) -> None:
    """Write a file that can be loaded, with other bytes in its largest tensor."""
    content = bytearray((trained / "checkpoints" / "last.ckpt").read_bytes())
    weight = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["model.net.fc.weight"]
    start = content.index(weight.numpy().tobytes())
    content[start : start + 8] = bytes(8)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda trained, path: None, "which does not exist"),
        (lambda trained, path: path.mkdir(), "must be a file, got the folder"),
        (lambda trained, path: path.write_bytes(b""), "is damaged"),
        (lambda trained, path: path.write_text("weights"), "is damaged"),
        (half, "is damaged"),
        (with_other_weights, "is damaged (checksum of "),
        (lambda trained, path: torch.save({"net.weight": torch.ones(1)}, path), "holds net.weight"),
        (lambda trained, path: torch.save(torch.ones(1), path), "holds Tensor"),
    ],
)
def test_a_file_that_is_not_a_checkpoint(make, message, trained, tmp_path, capsys):
    make(trained, tmp_path / "bad.ckpt")
    words = ["--config", trained / "config.yaml", "--ckpt_path", tmp_path / "bad.ckpt"]
    assert status("test", *words, "--run", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "bad.ckpt" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_starting_weights_with_other_bytes_are_refused(trained, tmp_path, capsys):
    with_other_weights(trained, tmp_path / "bad.ckpt")
    words = ["-c", trained / "config.yaml", "--run", tmp_path / "run", "--model.init", tmp_path / "bad.ckpt"]
    assert status("fit", *words) == 1
    assert "bad.ckpt must be a checkpoint of `fit`, got a damaged" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["my_file.MyNet", "{folder}/my_file.py"])
def test_a_class_in_a_file_is_explained(value, tiny, tmp_path, capsys):
    (tmp_path / "my_file.py").write_text("class MyNet(nn.Module): a: int = 3")
    assert status("fit", "-c", tiny, "--model.net", value.format(folder=tmp_path)) == 2
    assert "Pass a class of FILE.py as FILE.CLASS, and set PYTHONPATH to its folder" in capsys.readouterr().err


def test_a_command_without_options_names_recipes(capsys):
    assert status("fit") == 2
    assert "Pass a recipe, such as -c demo/digits" in capsys.readouterr().err


def test_a_missing_checkpoint_without_a_configuration(capsys, tmp_path):
    assert status("test", "--ckpt_path", tmp_path / "nowhere.ckpt") == 1
    assert f"got {tmp_path / 'nowhere.ckpt'}, which does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_without_its_configuration(command, trained, capsys, tmp_path):
    lonely = shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path)
    assert status(command, "--ckpt_path", lonely) == 1
    assert "last.ckpt must exist, got no config.yaml in its run folder. Pass -c RUN/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("fit", "--trainer.max_epochs 9 --model.net.width 8", "model.net.fc.weight: (3, 128) instead of (3, 256)"),
        ("test", "--model.net.width 8", "(4, 3, 3, 3) instead of (8, 3, 3, 3)"),
        ("test", "--model.activation ReLU", "8 not expected: model.net.features.1.alpha, model.net.features.1.beta"),
    ],
)
def test_a_checkpoint_of_another_architecture(command, words, message, trained, tmp_path, capsys):
    checkpoint = trained / "checkpoints" / "last.ckpt"
    options = ["-c", trained / "config.yaml", "--ckpt_path", checkpoint, "--run", tmp_path / "run", *words.split()]
    assert status(command, *options) == 1
    error = capsys.readouterr().err
    assert "The checkpoint must hold a SmallConvNet of this configuration, got another network" in error
    assert message in error
    assert "--config RUN/config.yaml" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoints").exists()


# ------------------------------------------------------------------ a loss that is not finite


@pytest.mark.parametrize("command", ["recipes", "compare"])
def test_an_error_of_the_file_system_is_one_line(command, monkeypatch, capsys):
    def refuse(words):
        Path("/proc/\x1b[31m").joinpath(*words).write_text("")

    monkeypatch.setattr(f"lightning_paf.commands.{command}.main", refuse)
    assert status(command, "file") == 1
    error = capsys.readouterr().err
    assert error.startswith("lightning-paf: error: /proc/?[31m/file cannot be used: No such file or directory.")
    assert "Traceback" not in error


def test_an_argument_that_the_configuration_cannot_hold(tiny, tmp_path, capsys):
    words = ["--trainer.callbacks+=ModelPruning", "--trainer.callbacks.pruning_fn", "l1_unstructured"]
    assert status("fit", "-c", tiny, *words, "--run", tmp_path / "run") == 1
    assert "pruning_fn must be a value that config.yaml can hold, got l1_unstructured." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_training(tiny, tmp_path, capsys):
    words = ["--model.optimizer", "SGD", "--model.optimizer.lr", "1e30"]
    error = fit_error(capsys, tmp_path / "run", "-c", tiny, *words)
    assert re.search(r"The loss must be finite, got nan at step [1-4] ", error)
    assert "model.net.features.1.alpha" in error
    assert "Lower the learning rate" in error
