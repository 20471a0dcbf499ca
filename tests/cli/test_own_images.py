"""Own images from training to the export: class names, bad input, sizes."""

import json

import numpy as np
import pytest
import torch
import yaml
from helpers.cli_runs import experiment, status
from helpers.image_folders import CLASSES, write_image_folder
from PIL import Image

from lightning_paf.loading import load_run


def write_recipe(folder, root, **data) -> str:
    """Write a recipe of one epoch without numbers of classes or channels."""
    content = experiment()
    content["data"] = {
        **{"dataset": "folder", "root": str(root), "real_fraction": 1.0, "batch_size": 8, "val_size": 4},
        **{"num_workers": 0, **data},
    }
    del content["model"]["net"]["init_args"]["in_channels"]
    del content["val_attack"]
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


PGD = ("--autoattack", "RobustEval", "--autoattack.attack", "PGD", "--autoattack.attack.steps", "2")


def check_round_trip(run, folder, data, shape) -> tuple[dict, str]:
    """Evaluate a run, export it, import the export, and compare; return the result and the report."""
    checkpoint, out, again = run / "checkpoints" / "last.ckpt", folder / "exported", folder / "again"
    assert status("test", "--ckpt_path", checkpoint, *PGD) == 0
    (result,) = (run / "test").glob("*.json")
    assert status("export", "--ckpt", checkpoint, "--out", out, "--formats", "safetensors", "--examples", 4) == 0
    (weights,) = out.glob("*.safetensors")
    net = ("--net", "SmallConvNet", "--model.net.width", "4", "--model.activation", "PSSiLU")
    assert status("import-weights", weights, *data, *net, "--out", again) == 0
    x = torch.rand(2, *shape)
    first, second = (load_run(path).model(x) for path in (checkpoint, again / "checkpoints" / "imported.ckpt"))
    assert torch.allclose(first, second, atol=1e-6)
    return json.loads(result.read_text()), result.with_suffix(".html").read_text()


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_a_folder_is_trained_evaluated_exported_and_imported(mode, channels, tmp_path, capsys):
    root, run = write_image_folder(tmp_path / "images", mode), tmp_path / "run"
    assert status("fit", "-c", write_recipe(tmp_path, root), "--run", run) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["classes"] == list(CLASSES)
    assert config["data"]["channels"] == channels
    content, report = check_round_trip(run, tmp_path, ("--dataset", "folder", "--data.root", root), (channels, 48, 64))
    assert (content["dataset"], content["class_names"]) == ("folder", list(CLASSES))
    assert [row["name"] for row in content["per_class"]] == list(CLASSES)
    assert all(f">{name}<" in report for name in CLASSES)
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert status("predict", "--ckpt_path", checkpoint) == 0
    (predictions,) = run.rglob("predictions.npz")
    assert np.load(predictions)["class_names"].tolist() == list(CLASSES)
    assert status("analyze", "channel-activations", "--ckpt", checkpoint, "--label", "1") == 0
    assert "of 4 images of dog, PGD linf" in capsys.readouterr().out


def test_a_run_reads_other_folders_by_its_own_classes(tmp_path):
    """The labels are those of the training, also where the folder of the test lacks a class."""
    root = write_image_folder(tmp_path / "images")
    assert status("fit", "-c", write_recipe(tmp_path, root, size=16), "--run", tmp_path / "run") == 0
    other = tmp_path / "other" / "test" / "owl"
    other.mkdir(parents=True)
    Image.new("RGB", (20, 20), (200, 200, 200)).save(other / "a.png")
    run = load_run(tmp_path / "run" / "checkpoints" / "last.ckpt", options=["--data.root", str(tmp_path / "other")])
    assert run.samples().fetch(np.array([0]))[1].tolist() == [2]


def test_an_empty_class_folder_is_named(tmp_path, capsys):
    root = write_image_folder(tmp_path / "images")
    (root / "train" / "pig").mkdir()
    assert status("fit", "-c", write_recipe(tmp_path, root)) == 1
    assert f"{root}/train/pig must hold images (.bmp, .jpeg" in flat(capsys)


def test_damaged_images_are_named_before_training_or_left_out(tmp_path, capsys):
    root = write_image_folder(tmp_path / "images")
    picture = (root / "train" / "cat" / "1.jpg").read_bytes()
    (root / "train" / "cat" / "1.jpg").write_bytes(picture[: len(picture) // 2])
    (root / "test" / "dog" / "0.png").write_bytes(b"")
    (root / "train" / "owl" / "2.png").unlink()
    (root / "train" / "owl" / "2.png").symlink_to("nowhere.png")
    recipe = write_recipe(tmp_path, root)
    for _ in range(2):  # the second time from the index
        assert status("fit", "-c", recipe) == 1
        error = flat(capsys)
        assert f"training set: all images must be readable, got {root}/train/cat/1.jpg (" in error
        assert f"{root}/train/owl/2.png (No such file or directory). Replace" in error
        assert "or pass --data.skip_corrupt true to leave them out." in error
    with pytest.warns(
        UserWarning, match=r"test set: 1 of 12 images are damaged and left out: .*test/dog/0\.png \(empty"
    ):
        assert status("fit", "-c", recipe, "--data.skip_corrupt", "true", "--run", tmp_path / "run") == 0


def test_classes_of_the_test_images_that_training_lacks_are_refused(tmp_path, capsys):
    root = write_image_folder(tmp_path / "images")
    (root / "test" / "owl").rename(root / "test" / "own")
    assert status("fit", "-c", write_recipe(tmp_path, root)) == 1
    error = flat(capsys)
    assert f"{root}/test: all classes must be those of the training (cat, dog, owl), got own too. Remove or" in error


def test_images_of_mixed_channels_are_refused_or_converted(tmp_path, capsys):
    root = write_image_folder(tmp_path / "images")
    Image.new("L", (64, 48)).save(root / "train" / "dog" / "3.jpg")
    recipe = write_recipe(tmp_path, root)
    assert status("fit", "-c", recipe) == 1
    error = flat(capsys)
    assert f"training set: images must have 3 channels, got 1 in {root}/train/dog/3.jpg and 1 of 24 images." in error
    assert status("fit", "-c", recipe, "--data.convert_channels", "true", "--run", tmp_path / "run") == 0


def test_images_of_different_sizes_need_a_size(tmp_path, capsys):
    root = write_image_folder(tmp_path / "images")
    Image.new("RGB", (64, 40)).save(root / "train" / "dog" / "3.jpg")
    assert status("fit", "-c", write_recipe(tmp_path, root)) == 1
    error = flat(capsys)
    assert "images must have one size (H x W) without data.size, got 48 x 64 in" in error
    assert f"and 40 x 64 in {root}/train/dog/3.jpg. Pass e.g. --data.size 64." in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.num_classes 4", "data.num_classes must be 3, the number of classes in"),
        (
            "--data.root nowhere",
            "data.root must hold train/CLASS/*, got no folder nowhere/train.",
        ),
        ("--model.net.in_channels 1", "model.net.in_channels must be 3, as in the data, got 1"),
        ("--data.random_crop 0.5", "data.size must be set for resize and random_crop, got None"),
        ("--data.size 32 --data.resize 20", "resize must be at least data.size=32, got 20"),
        ("--data.size 32 --data.resize 100000", "resize must be at most 4096 pixels, got 100000"),
        ("--data.size 32 --data.random_crop 2", "random_crop must be in (0, 1], got 2.0"),
        ("--data.size 0", "data.size must be from 1 to 4096 pixels, got 0"),
        ("--data.size 100000", "data.size must be from 1 to 4096 pixels, got 100000"),
        ("--data.dataset digits --data.resize 9", "data.resize must be null for data.dataset=digits, got 9"),
        ("--data.channels 2", "channels must be 1 or 3 for encoded images, got 2"),
    ],
)
def test_options_are_checked_before_data_is_read(words, message, tmp_path, capsys):
    root = write_image_folder(tmp_path / "images")
    assert status("fit", "-c", write_recipe(tmp_path, root), *words.split()) in (1, 2)
    assert message in flat(capsys)


def flat(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1)])
def test_grey_arrays_are_trained_evaluated_exported_and_imported(shape, tmp_path):
    root, run = tmp_path / "images", tmp_path / "run"
    root.mkdir()
    for part, count in (("train", 24), ("test", 9)):
        labels = np.arange(count) % 3
        images = np.zeros((count, *shape), np.uint8) + (80 * labels).astype(np.uint8).reshape(-1, *[1] * len(shape))
        np.savez(root / f"{part}.npz", image=images, label=labels)
    recipe = write_recipe(tmp_path, root, dataset="npz", num_classes=3)
    assert status("fit", "-c", recipe, "--run", run) == 0
    check_round_trip(run, tmp_path, ("--dataset", "npz", "--data.num_classes", "3", "--data.root", root), (1, 28, 28))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["channels"] is None  # follows the file
