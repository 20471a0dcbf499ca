"""Every command of the page on own images runs, and the recipes for ImageNet build."""

import re
import shlex

import numpy as np
import pytest
from helpers.cli_runs import built, status
from helpers.fakes import CONFIGS
from helpers.image_folders import write_image_folder

PAGE = (CONFIGS.parent / "docs" / "data.md").read_text()
COMMANDS = re.findall(r"^lightning-paf (.*)$", PAGE, re.M)


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "FOLDER")
    (tmp_path / "ARRAYS").mkdir()
    for part in ("train", "test"):
        np.savez(tmp_path / "ARRAYS" / f"{part}.npz", image=np.zeros((24, 28, 28), np.uint8), label=np.arange(24) % 3)
    quick = ("--trainer.limit_test_batches", "1", "--trainer.logger", "false")
    for command in COMMANDS:
        words = shlex.split(command)
        assert status(*words, *(quick if words[0] == "test" else ())) == 0, command


@pytest.mark.parametrize("path", sorted((CONFIGS / "imagenet").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_for_imagenet_builds_without_images(path):
    cli = built("-c", path, "--model.net.dict_kwargs.pretrained", "false", "--trainer.accelerator", "cpu")
    spec = cli.datamodule.spec
    assert (spec.num_classes, spec.channels) == (cli.model.model.num_classes, 3)
    assert cli.model.attack.eps == pytest.approx(4 / 255)
    assert cli.datamodule.files.random_crop is not None
