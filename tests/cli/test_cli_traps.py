"""Defaults of LightningCLI that this command line must not have."""

import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import built, status, write_experiment
from helpers.fakes import CONFIGS

from lightning_paf.cli.training import train
from lightning_paf.tasks.classification import RobustModule


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_experiment(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert status("fit", "-c", tiny, "--run", run) == 0
    return run


@pytest.fixture
def checkpoint(trained) -> Path:
    return trained / "checkpoints" / "last.ckpt"


def plain(value) -> bool:
    """Return whether a value consists of plain YAML values."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


def test_options_override_the_checkpoint(trained, checkpoint, tmp_path):
    """LightningCLI would silently override options by checkpoint hyper-parameters."""
    typed = ["--model.attack.eps", "16/255", "--model.attack.step_size", "9/255", "--model.decay", "all"]
    words = ["test", "-c", trained / "config.yaml", "--ckpt_path", checkpoint, *typed, "--run", tmp_path]
    cli = train([str(word) for word in words])
    assert cli.trainer.ckpt_path == str(checkpoint)
    assert cli.model.attack.radius == 16 / 255
    assert cli.model.decay == "all"
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["attack"]["init_args"]["eps"] == "8/255"


def test_hyper_parameters_are_plain_values(checkpoint):
    """`torch.load` with `weights_only` refuses anything else."""
    saved = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert saved["net"]["class_path"] == "lightning_paf.nets.SmallConvNet"
    assert plain(dict(saved))


def test_a_checkpoint_loads_without_a_command_line(checkpoint):
    """Linked values are in the hyper-parameters, since they are linked by the parser."""
    module = RobustModule.load_from_checkpoint(checkpoint)
    assert module.model.num_classes == module.model.head.out_features == 3
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())


def test_the_optimiser_options_of_lightning_are_unknown(tiny):
    """They would put all parameters into one group and step schedules once an epoch."""
    for words in (["--optimizer", "SGD"], ["--lr_scheduler", "StepLR"]):
        assert status("fit", "-c", tiny, *words) == 2


def test_another_class_keeps_shared_arguments(tiny):
    cli = built("-c", tiny, "--model.attack.eps", "4/255", "--model.attack", "RSFGSM")
    assert type(cli.model.attack).__name__ == "RSFGSM"
    assert cli.model.attack.eps == Fraction(4, 255)


def test_other_callbacks_do_not_change_the_slots(tiny):
    """Default callbacks in a list would be lost or doubled."""
    before = [type(callback).__name__ for callback in built("-c", tiny).trainer.callbacks]
    more = built("-c", tiny, "--trainer.callbacks+=LearningRateMonitor").trainer.callbacks
    assert sorted(type(callback).__name__ for callback in more) == sorted([*before, "LearningRateMonitor"])


def test_the_configuration_is_in_the_run_folder_with_several_loggers(trained):
    assert (trained / "config.yaml").is_file()
    assert (trained / "metrics.csv").is_file()
    assert list(trained.glob("events.out.tfevents.*"))


def test_an_evaluation_writes_no_configuration_and_can_be_repeated(trained, checkpoint):
    before = (trained / "config.yaml").read_bytes()
    for _ in range(2):
        assert status("test", "--ckpt_path", checkpoint) == 0
    assert (trained / "config.yaml").read_bytes() == before
    assert not (trained / "test" / "config.yaml").exists()
    assert not (trained / "test" / "checkpoints").exists()
    times = [path.stat().st_mtime_ns for path in sorted(trained.glob("test/state/*/*.record"))]
    assert status("test", "--ckpt_path", checkpoint, "--fresh") == 0
    again = [path.stat().st_mtime_ns for path in sorted(trained.glob("test/state/*/*.record"))]
    assert len(again) == len(times) > 0
    assert min(again) > max(times)


def test_attacks_have_gradients_with_inference_mode(trained, checkpoint, tmp_path):
    words = ["--ckpt_path", checkpoint, "--trainer.inference_mode", "true", "--run", tmp_path]
    assert status("validate", "-c", trained / "config.yaml", *words) == 0
    assert status("test", "-c", trained / "config.yaml", *words) == 0


@pytest.mark.parametrize(
    ("typed", "radius"),
    [("8/255", 8 / 255), ("12/255", 12 / 255), ("0.031", 0.031), ("2.5/255", 1 / 102), ("0.5/255", 1 / 510)],
)
def test_a_radius_is_saved_as_given(typed, radius, tiny, tmp_path, capsys):
    words = ["-c", tiny, "--model.attack.eps", typed, "--model.attack.step_size", "0.1"]
    assert status("fit", *words, "--print_config") == 0
    printed = capsys.readouterr().out
    assert f"eps: {typed}\n" in printed
    (tmp_path / "printed.yaml").write_text(printed)
    assert built("-c", tmp_path / "printed.yaml").model.attack.radius == radius


@pytest.mark.parametrize("typed", ["8./255", "8/255.", "8 / 255", "8.0/255.0", ".8/25.5"])
def test_a_radius_of_decimals_is_exact(typed, tiny):
    assert built("-c", tiny, "--model.attack.eps", typed).model.attack.eps == Fraction(8, 255)


@pytest.mark.parametrize("typed", ["8/x", "8/0", "8/", "abc"])
def test_other_radii_are_refused(typed, tiny, capsys):
    assert status("fit", "-c", tiny, "--model.attack.eps", typed) == 2
    assert f"it must be a number such as 8/255 or 0.031, got '{typed}'" in capsys.readouterr().err


def test_compromised_releases_of_lightning_are_excluded():
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["project"]
    (bound,) = [line for line in project["dependencies"] if line.startswith("lightning>")]
    assert {"!=2.6.2", "!=2.6.3"} <= set(bound.split(","))
