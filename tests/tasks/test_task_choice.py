"""`--model CLASS` chooses another task; without it, nothing changes for classification."""

import pytest
import torch
import yaml
from helpers.cli_runs import built, status, write_experiment
from helpers.task_fakes import ScaledLoss

from lightning_paf.cli.class_names import named_task
from lightning_paf.tasks.classification import RobustModule

TASK = ["--model", "helpers.task_fakes.ScaledLoss", "--model.scale", "0.5"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_experiment(tmp_path_factory.mktemp("tiny"))


def test_a_task_is_trained_resumed_and_evaluated(tiny, tmp_path):
    run = ["--run", tmp_path / "run"]
    assert status("fit", "-c", tiny, *TASK, *run) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["scale"] == 0.5
    model = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]
    assert (model["class_path"], model["init_args"]["scale"]) == ("helpers.task_fakes.ScaledLoss", 0.5)
    saved = ["-c", tmp_path / "run" / "config.yaml"]
    assert status("fit", *saved, "--ckpt_path", "last", "--trainer.max_epochs", "2", *run) == 0
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 8
    assert status("test", "--ckpt_path", checkpoint) == 1, "a class of another package is not trusted"
    assert status("test", "--ckpt_path", checkpoint, "--trust-config") == 0
    assert status("test", *saved, "--ckpt_path", "last", "--untrained") == 1
    assert status("test", *saved, "--untrained") == 0
    module = built(*saved, "--model.net.width", "6").model
    assert type(module) is ScaledLoss
    assert (module.scale, module.model.num_classes) == (0.5, 3)


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "RobustModule", "-c", "{tiny}", "--model.attack.eps", "4/255"],
        ["-c", "{tiny}", "--model=lightning_paf.tasks.classification.RobustModule", "--model.attack.eps", "4/255"],
    ],
)
def test_short_options_and_configurations_apply_to_a_named_task(words, tiny):
    module = built(*(word.format(tiny=tiny) for word in words)).model
    assert type(module) is RobustModule
    assert module.attack.radius == 4 / 255


def test_a_mistyped_task_lists_the_known_ones(tiny, capsys):
    assert status("fit", "-c", tiny, "--model", "RobustModul") == 2
    assert "model=RobustModul names no known class. Did you mean RobustModule? Known: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  class_path: A\n", "A"),
        ("data: {}\nmodel: {class_path: A}\n", "A"),
        ("model:\n  net:\n    class_path: A\n", None),
        ("model: {net: {class_path: A}}\n", None),
    ],
)
def test_a_configuration_names_a_task(text, expected, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    for config in (str(path), text):
        assert named_task(["--config", config]) == expected
    path.write_text("net: {class_path: A}\n")
    assert not named_task(["--model", str(path)])
    assert not named_task(["--model", "{net: {class_path: A}}", "--model.net", "A"])
