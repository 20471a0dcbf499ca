"""Options that differ in a resumed run: warned of, refused, or without effect."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from helpers.cli_runs import status, trained_run, write_experiment
from helpers.resume_helpers import RateRecorder, content

from lightning_paf.runs.progress import FILE, Progress
from lightning_paf.runs.resume_check import changed_options

STARTED = {
    "seed_everything": 0,
    "trainer": {"precision": None, "max_epochs": 4, "devices": 8, "callbacks": None},
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


def changes(folder: Path, option: str, value) -> list[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(STARTED))
    config = copy.deepcopy(STARTED)
    *path, name = option.split(".")
    inner = config
    for key in path:
        inner = inner[key]
    inner[name] = value
    return changed_options(folder, config)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("seed_everything", 1, "--seed_everything 0 -> 1"),
        ("data.batch_size", 32, "--data.batch_size 16 -> 32"),
        ("data.synthetic", ["/a/other.npz"], "--data.synthetic [/a/pool.npz] -> [/a/other.npz]"),
        ("model.net.init_args.width", 8, "--model.net.width 4 -> 8"),
        ("model.net", {"class_path": "lightning_paf.nets.ResNet18"}, "--model.net SmallConvNet -> ResNet18"),
        ("averaging", {"class_path": "a.WarmupEMA"}, "--averaging null -> WarmupEMA"),
        ("trainer.max_epochs", 3, "--trainer.max_epochs 4 -> 3"),
        ("trainer.precision", "bf16-mixed", "--trainer.precision null -> bf16-mixed"),
        ("trainer.callbacks", [{"class_path": "a.B"}], "--trainer.callbacks null -> [{class_path: a.B}]"),
        ("checkpoint.init_args.monitor", "val/acc", "--checkpoint.monitor null -> val/acc"),
    ],
)
def test_a_difference_is_one_line(option, value, text, tmp_path):
    assert changes(tmp_path, option, value) == [text]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trainer.devices", 1),
        ("trainer.callbacks", []),
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
def test_devices_paths_and_speed_can_differ(option, value, tmp_path):
    assert changes(tmp_path, option, value) == []


def test_without_a_configuration_nothing_differs(tmp_path):
    assert changed_options(tmp_path, STARTED) == []


@pytest.mark.parametrize("text", [b"", b"[1, 2]", b"a: [", b"words", b"\xff\xfe\0", b"a: \0"])
def test_another_file_in_its_place_is_refused(text, tmp_path):
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.yaml must be the configuration of the run, got .* Restore it"):
        changed_options(tmp_path, STARTED)


def test_a_configuration_of_the_user_is_not_replaced(tmp_path, capsys):
    config = Path(write_experiment(tmp_path)).rename(tmp_path / "config.yaml")
    before = content(tmp_path)
    for words in ([], ["--ckpt_path", "auto"]):
        assert status("fit", "-c", config, "--run", tmp_path, *words) == 1
        assert "must hold no config.yaml that `fit` did not write" in capsys.readouterr().err
    assert content(tmp_path) == before


@pytest.fixture(scope="module")
def stopped_early(tmp_path_factory) -> list:
    """Command of a run that early stopping ended after 2 of 4 epochs.

    Its fifth word is the run folder.
    """
    folder = tmp_path_factory.mktemp("early")
    words = ["fit", "-c", write_experiment(folder), "--run", folder / "run", "--ckpt_path", "auto"]
    words += ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/acc"]
    words += ["--trainer.callbacks.patience", 1, "--trainer.callbacks.min_delta", 1, "--trainer.max_epochs"]
    assert status(*words, 4) == 0
    assert steps(words) == 8
    return words


def steps(words: list) -> int:
    return torch.load(words[4] / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def test_a_finished_run_stays_finished_until_options_differ(stopped_early, caplog):
    before = content(stopped_early[4])
    assert status(*stopped_early, 4, "--data.num_workers", 1) == 0
    assert "has finished at step 8" in caplog.text
    assert "val/acc did not improve" in Progress.read(stopped_early[4] / FILE).error
    assert content(stopped_early[4]) == before
    with pytest.warns(UserWarning, match="has changed: --trainer.max_epochs 4 -> 5"):
        assert status(*stopped_early, 5) == 0
    assert steps(stopped_early) == 12


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--model.activation", "SiLU"], "The checkpoint must hold a SmallConvNet"),
        (["--model.optimizer", "Adam"], "The checkpoint must hold the state of Adam"),
        (["--model.decay", "all"], "The checkpoint must hold the state of SGD"),
        (["--model.schedule", "Plateau", "--model.schedule.monitor", "val/acc"], "the same kind of schedule, got one"),
    ],
)
def test_another_network_or_optimizer_is_refused_and_nothing_is_lost(words, error, stopped_early, capsys):
    kept = ("config.yaml", "checkpoints/last.ckpt", "metrics.csv")
    before = [(stopped_early[4] / name).read_bytes() for name in kept]
    assert status(*stopped_early, 9, *words) == 1
    assert error in capsys.readouterr().err
    assert [(stopped_early[4] / name).read_bytes() for name in kept] == before


def groups(run: Path) -> list[dict]:
    (state,) = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    return [{name: value for name, value in group.items() if name != "params"} for group in state["param_groups"]]


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    return trained_run(tmp_path_factory.mktemp("complete"))


def test_changed_hyper_parameters_of_the_optimizer_are_applied(tmp_path):
    """The first step of the second training has half the rate, not that of the end of the first one."""
    words = ["fit", "-c", write_experiment(tmp_path), "--ckpt_path", "auto"]
    assert status(*words, "--run", tmp_path / "run") == 0
    changed = [
        "--model.optimizer.lr",
        "0.3",
        "--model.optimizer.momentum",
        "0.5",
        "--model.optimizer.weight_decay",
        "0.1",
    ]
    schedule = ["--trainer.callbacks+=helpers.resume_helpers.RateRecorder", "--trainer.max_epochs", "2"]
    with pytest.warns(UserWarning, match="has changed: --model.optimizer.lr 0.1 -> 0.3"):
        assert status(*words, *changed, *schedule, "--run", tmp_path / "run") == 0
    assert RateRecorder.rates[0] == pytest.approx(0.15)
    first, second = groups(tmp_path / "run")
    assert (first["initial_lr"], first["momentum"], first["weight_decay"]) == (0.3, 0.5, 0.1)
    assert (second["initial_lr"], second["momentum"], second["weight_decay"]) == (0.3, 0.5, 0.0)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--run", "RUN", "--ckpt_path", "auto"], "--trainer.max_epochs must be larger than the 1 epochs of"),
        (["--run", "OTHER", "--ckpt_path", "LAST"], "--trainer.max_epochs must be larger than the 1 epochs of"),
        (
            ["--run", "OTHER", "--ckpt_path", "LAST", "--trainer.max_steps", "3", "--trainer.max_epochs", "9"],
            "--trainer.max_steps must be larger than",
        ),
        (["--run", "OTHER", "--ckpt_path", "best"], "--ckpt_path must be a checkpoint, got best, which does not exist"),
        (
            ["--run", "OTHER", "--ckpt_path", "WEIGHTS"],
            "holds weights only. Pass --model.init instead to start",
        ),
    ],
)
def test_options_that_would_be_recorded_without_effect_are_refused(words, error, complete, tmp_path, capsys):
    paths = {"RUN": complete, "LAST": complete / "checkpoints" / "last.ckpt", "OTHER": tmp_path / "other"}
    paths["WEIGHTS"] = tmp_path / "weights.ckpt"
    content_of_last = torch.load(paths["LAST"], weights_only=True)
    torch.save({key: content_of_last[key] for key in ("state_dict", "pytorch-lightning_version")}, paths["WEIGHTS"])
    before = content(complete)
    config = complete / "config.yaml"
    assert status("fit", "-c", config, "--model.optimizer.lr", "0.3", *(paths.get(word, word) for word in words)) == 1
    assert error in capsys.readouterr().err
    assert content(complete) == before
    assert not paths["OTHER"].exists()
