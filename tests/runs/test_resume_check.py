"""A run folder is gone on with by the training that was begun there, and by no other."""

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers.cli_runs import status, write_experiment

from lightning_paf.runs.resume_check import check_same_training

BEGUN = {
    "seed_everything": 0,
    "trainer": {"precision": None, "max_epochs": 4, "max_steps": -1, "devices": 8, "callbacks": None},
    "model": {
        "net": {"class_path": "lightning_paf.nets.SmallConvNet", "init_args": {"width": 4}},
        "activation": None,
        "speed": {"compile": False},
    },
    "data": {"synthetic": ["/a/pool.npz"], "root": "/a", "num_workers": 0, "batch_size": 16},
    "averaging": None,
    "checkpoint": {"class_path": "ModelCheckpoint", "init_args": {"monitor": None, "save_top_k": 1}},
    "run": "runs/a",
    "ckpt_path": None,
}


def changed(option: str, value) -> dict:
    config = copy.deepcopy(BEGUN)
    *path, name = option.split(".")
    place = config
    for key in path:
        place = place[key]
    place[name] = value
    return config


def difference(tmp_path: Path, option: str, value) -> str:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(BEGUN))
    with pytest.raises(ValueError, match="begun with other options") as error:
        check_same_training(tmp_path, changed(option, value))
    return str(error.value).splitlines()[1]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("seed_everything", 1, "--seed_everything 0 -> 1"),
        ("data.batch_size", 32, "--data.batch_size 16 -> 32"),
        ("data.synthetic", ["/a/other.npz"], "--data.synthetic [/a/pool.npz] -> [/a/other.npz]"),
        ("model.net.init_args.width", 8, "--model.net.width 4 -> 8"),
        ("model.net", {"class_path": "lightning_paf.nets.ResNet18", "init_args": {}}, "SmallConvNet -> ResNet18"),
        ("model.activation", {"class_path": "a.PSSiLU", "init_args": {}}, "--model.activation null -> PSSiLU"),
        ("averaging", {"class_path": "a.WarmupEMA"}, "--averaging null -> WarmupEMA"),
        ("trainer.max_epochs", 3, "--trainer.max_epochs 4 -> 3"),
        ("trainer.max_steps", 3, "--trainer.max_steps -1 -> 3"),
        ("trainer.precision", "bf16-mixed", "--trainer.precision null -> bf16-mixed"),
        ("checkpoint.init_args.monitor", "val/acc", "--checkpoint.monitor null -> val/acc"),
    ],
)
def test_what_would_make_it_another_training_is_refused(option, value, told, tmp_path):
    assert difference(tmp_path, option, value).endswith(told)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trainer.devices", 1),
        ("trainer.callbacks", [{"class_path": "a.B"}]),
        ("trainer.precision", "32-true"),
        ("data.num_workers", 8),
        ("data.root", "/b"),
        ("data.synthetic", "/b/pool.npz"),
        ("data.new_option", 3),
        ("model.speed", {"compile": True}),
        ("checkpoint.init_args.save_top_k", 3),
        ("run", "/b/runs/a"),
        ("ckpt_path", "auto"),
    ],
)
def test_other_machines_and_places_are_fine(option, value, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(BEGUN))
    assert check_same_training(tmp_path, changed(option, value)) is False


@pytest.mark.parametrize(("option", "value"), [("trainer.max_epochs", 5), ("trainer.max_epochs", -1)])
def test_a_longer_one_is_told(option, value, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(BEGUN))
    assert check_same_training(tmp_path, changed(option, value)) is True


@pytest.mark.parametrize("content", [None, "", "[1, 2]", "a: [", "trainer:\n  max_ep"])
def test_without_a_readable_configuration_there_is_nothing_to_compare(content, tmp_path):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    assert check_same_training(tmp_path, BEGUN) is False


def test_nothing_is_lost_where_another_training_is_given_the_folder(tmp_path, capsys):
    words = ["fit", "-c", write_experiment(tmp_path), "--ckpt_path", "auto", "--trainer.max_epochs", "2"]
    run = tmp_path / "run"
    assert status(*words, "--run", run) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    other = ["--model.activation", "SiLU", "--data.batch_size", "8", "--data.num_workers", "1"]
    assert status(*words, "--run", run, *other) == 1
    said = capsys.readouterr().err
    assert re.search(
        r"begun with other options:\n  --\S+ .* -> .*\n  --\S+ .* -> .*\nGive those .* --run OTHER --ckpt_path FILE",
        said,
    )
    assert "--model.activation PSSiLU -> SiLU" in said
    assert "--data.batch_size 16 -> 8" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    # The way that the message names.
    forced = ["--run", tmp_path / "other", "--ckpt_path", run / "checkpoints" / "last.ckpt", "--data.batch_size", "8"]
    assert status(*words, *forced, "--trainer.max_epochs", "3") == 0
    assert torch.load(tmp_path / "other" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > 2 * 4
