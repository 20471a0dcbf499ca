"""Errors that Lightning, torch or the parser raise for an option: one line, and nothing is written."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cli_runs import status, write_experiment
from jsonargparse import Namespace

from lightning_paf.cli.numbers import check_numbers

CONFIGURED = [  # refused before anything is built
    ("--seed_everything -1", "--seed_everything must be from 0 to 4294967295, got -1"),
    ("--trainer.barebones true", "--trainer.barebones must be false"),
    ("--model.optimizer SGD --model.optimizer.lr null", "--model.optimizer.lr must be positive and finite, got None"),
    ("--trainer.precision foo", 'Parser key "trainer.precision": Expected int, Expected one of'),
    ("--trainer.logger foo", "Expected a dot import path string: foo"),
    ("--val_attack.batch_size abc", 'Parser key "batch_size": Expected int. Got value: abc'),
    ("--model.attack null", "Not a valid subclass of Attack. Got value: None"),
    ("-c BINARY", "must be a YAML file, got"),
]
BUILT = [
    ("--model.net.width -1", "width must be at least 1, got -1. Pass another --model.net.width."),
    ("--model.net TorchvisionNet --model.net.name resnet18", "expected input[1, 1, 8, 8] to have 3 channels"),
    ("--model.net VGG16BN", "VGG16BN must accept images of shape (1, 1, 8, 8) from digits, got: "),
    ("--model.optimizer SGD --model.optimizer.momentum -1", "got: Invalid momentum value: -1.0. Pass other"),
    ("--model.optimizer Adam --model.optimizer.betas [2,2]", "got: Invalid beta parameter at index 0"),
    ("--trainer.devices 0", "--trainer must be valid, got: `Trainer(devices='0')` value"),
    ("--trainer.devices abc", "--trainer must be valid, got: `devices` selected with"),
    ("--trainer.accelerator mps", "Without a GPU, pass --trainer configs/trainer/cpu.yaml."),
    ("--trainer.max_time foo", "Expected a string in the format DD:HH:MM:SS"),
    ("--trainer.profiler foo", "it can only be one of"),
    ("--ckpt_path hpc", "--ckpt_path must be a checkpoint, got hpc, which does not exist"),
    ("--model.attack.step_size 1e9", "step_size must be at most 1 times the pixel range in linf"),
    ("--model.attack.step_size .inf", "step_size must be positive and finite, got inf"),
    ("--model.attack.step_size null", "step_size must be a number, got None"),
    ("--model.attack.steps 100000000000000000000", "steps must be at most 1000000, got 100000000000000000000"),
    ("--checkpoint.monitor nothing", "ModelCheckpoint.monitor must be a metric that the training logs, got nothing"),
    (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val_acc",
        "EarlyStopping.monitor must be a metric that the training logs, got val_acc. Pass one of val/acc, val/acc_pgd",
    ),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_experiment(tmp_path_factory.mktemp("tiny"))


def error_of(capsys, *words: str | Path) -> str:
    """Return the error of a command, which must be the last line."""
    assert status(*words) in (1, 2)
    output = capsys.readouterr().err
    assert "Traceback" not in output
    (error,) = output[output.index("error: ") :].splitlines()
    return error


@pytest.mark.parametrize(("words", "message"), [*CONFIGURED, *BUILT])
def test_an_option_that_a_library_refuses(words, message, tiny, tmp_path, capsys):
    (tmp_path / "binary.yaml").write_bytes(b"\x80\x04\x00")
    words = words.replace("BINARY", str(tmp_path / "binary.yaml")).split()
    if "--model.net" in words[0]:
        words = ["--data.dataset", "digits", "--data.num_classes", "null", *words]
    assert message in error_of(capsys, "fit", "-c", tiny, *words, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("fit", "trainer.max_epochs", 0),
        ("fit", "trainer.max_epochs", -5),
        ("fit", "trainer.max_steps", 0),
        ("fit", "trainer.accumulate_grad_batches", 0),
        ("fit", "trainer.check_val_every_n_epoch", 0),
        ("fit", "trainer.val_check_interval", 0.0),
        ("fit", "trainer.log_every_n_steps", -1),
        ("fit", "trainer.num_sanity_val_steps", -5),
        ("fit", "trainer.gradient_clip_val", math.nan),
        ("fit", "trainer.gradient_clip_val", -1.0),
        ("fit", "trainer.limit_train_batches", 0),
        ("fit", "model.optimizer.init_args.lr", 0.0),
        ("fit", "model.init_args.optimizer.init_args.lr", -0.1),
        ("validate", "trainer.limit_val_batches", 0),
        ("test", "trainer.limit_test_batches", 0.0),
        ("predict", "trainer.limit_predict_batches", 0),
        ("test", "seed_everything", 2**32),
    ],
)
def test_a_number_out_of_range(command, option, value):
    config = Namespace()
    config[option] = value
    with pytest.raises(ValueError, match=rf"--{option.replace('init_args.', '')} must be .*, got {value}\. Pass"):
        check_numbers(command, config)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trainer.max_epochs", None),
        ("trainer.max_steps", -1),
        ("trainer.limit_val_batches", 0),
        ("trainer.val_check_interval", "00:01:00:00"),
        ("trainer.gradient_clip_val", 0.0),
        ("seed_everything", True),
    ],
)
def test_a_number_that_lightning_accepts(option, value):
    config = Namespace()
    config[option] = value
    check_numbers("fit", config)


def test_a_monitored_mean_is_checked_after_the_first_step(tiny, tmp_path, capsys):
    words = ["--checkpoint.monitor", "train/los", "--run", tmp_path / "run"]
    error = error_of(capsys, "fit", "-c", tiny, *words)
    assert "got train/los. Pass one of train/loss, train/acc_adv" in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_learning_rate_finder_is_refused(tiny, tmp_path, capsys):
    words = ["--trainer.callbacks+=LearningRateFinder", "--run", tmp_path / "run"]
    assert "got a LearningRateFinder. Omit it" in error_of(capsys, "fit", "-c", tiny, *words)


def test_an_error_of_a_step_keeps_its_traceback(tiny, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lightning_paf.tasks.classification.RobustModule.training_step", fail)
    with pytest.raises(ZeroDivisionError):
        status("fit", "-c", tiny, "--run", tmp_path / "run")


def test_the_traceback_of_a_configuration_on_request(tiny, monkeypatch):
    monkeypatch.setenv("LIGHTNING_PAF_DEBUG", "1")
    with pytest.raises(ValueError, match="width must be at least 1"):
        status("fit", "-c", tiny, "--model.net.width", "-1")


def test_a_tilde_after_an_equals_sign_is_the_home_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert status("fit", "-c", tiny, "--run=~/run", "--trainer.fast_dev_run", "true") == 0
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sanity-check --ckpt x --examples -5", "argument --examples: must be at least 1, got -5"),
        ("curve --ckpt x --device foo", "argument --device: must be cpu or an available device such as cuda, got foo"),
        ("certify --ckpt x --sigma 1 --device meta", "argument --device: must be cpu or an available device"),
        ("sanity-check --ckpt x --json FOLDER", "--json must be a file in an existing folder, got"),
        ("recipes --json", "unrecognized arguments: --json"),
        ("synthesize --out FOLDER/missing/pool.npz --images 10", ""),
    ],
)
def test_options_of_other_commands(words, message, tmp_path, capsys):
    assert message in error_of(capsys, *words.replace("FOLDER", str(tmp_path)).split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["recipes", "--help"])
def test_a_closed_pipe_does_not_end_a_command(command):
    words = [sys.executable, "-m", "lightning_paf", command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
