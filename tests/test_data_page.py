"""Every command of the page on own images runs, and the recipes for ImageNet build."""

import re
import shlex

import numpy as np
import pytest
from helpers.cli_runs import built, status
from helpers.data_files import write_fashion_mnist, write_hub_dataset
from helpers.fakes import CONFIGS
from helpers.image_folders import write_image_folder

PAGE = (CONFIGS.parent / "docs" / "data.md").read_text()
COMMANDS = re.findall(r"^lightning-paf (.*)$", PAGE, re.M)
HUB = [command for command in COMMANDS if "huggingface" in command]


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "FOLDER")
    (tmp_path / "ARRAYS").mkdir()
    for part in ("train", "test"):
        np.savez(tmp_path / "ARRAYS" / f"{part}.npz", image=np.zeros((24, 28, 28), np.uint8), label=np.arange(24) % 3)
    parts = {f"{part}_images": np.zeros((24, 28, 28), np.uint8) for part in ("train", "val", "test")}
    np.savez(
        "medmnist.npz", **parts, **{name.replace("images", "labels"): np.arange(24)[:, None] % 3 for name in parts}
    )
    write_fashion_mnist(tmp_path / "TORCHVISION")
    quick = ("--trainer.limit_test_batches", "1", "--trainer.logger", "false")
    for command in [command for command in COMMANDS if command not in HUB]:
        words = shlex.split(command)
        assert status(*words, *(quick if words[0] == "test" else ())) == 0, command


def test_the_command_on_a_dataset_of_hugging_face_runs(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    write_hub_dataset(tmp_path / "SAVED", write_image_folder(tmp_path / "FOLDER"))
    for command in HUB:
        assert status(*shlex.split(command)) == 0


@pytest.mark.parametrize("path", sorted((CONFIGS / "imagenet").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_for_imagenet_builds_without_images(path):
    cli = built("-c", path, "--model.net.dict_kwargs.pretrained", "false", "--trainer.accelerator", "cpu")
    spec = cli.datamodule.spec
    assert (spec.num_classes, spec.channels) == (cli.model.model.num_classes, 3)
    assert cli.model.attack.eps == pytest.approx(4 / 255)
    assert cli.datamodule.files.random_crop is not None


@pytest.mark.parametrize("path", sorted((CONFIGS / "imagenet").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_for_imagenet_runs_at_a_tiny_size(path, tmp_path):
    """One step of training and validation with a tiny network of timm, three classes and small images."""
    root = write_image_folder(tmp_path / "images")
    net = ("--model.net.name", "test_resnet", "--model.net.dict_kwargs.pretrained", "false")
    size = ("--data.size", "32", "--data.resize", "36", "--data.num_classes", "3", "--data.batch_size", "4")
    quick = ("--data.num_workers", "0", "--data.val_size", "4", "--trainer.fast_dev_run", "true")
    words = ("fit", "-c", path, "--data.root", root, *net, *size, *quick, "--trainer.accelerator", "cpu")
    assert status(*words, "--run", tmp_path / "run") == 0
