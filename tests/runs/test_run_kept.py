"""A new training never replaces an existing run, complete or damaged."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.resume_helpers import at_step, content

from lightning_paf.runs.lock import FILE as LOCK
from lightning_paf.runs.progress import FILE, Progress

AUTO = ["--ckpt_path", "auto"]
PATH_STATE = "--trainer.callbacks+=helpers.resume_helpers.PathState"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), "--periodic.every_n_train_steps", "2"]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert status(*base, "--run", run) == 0
    assert not (run / LOCK).exists()
    assert Progress.read(run / FILE).checkpoint == "last.ckpt"
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.ckpt"))


def refusal(base, run, capsys, *words) -> str:
    """Return the one-line error of `auto`, which must leave everything unchanged."""
    before = content(run)
    capsys.readouterr()
    assert status(*base, "--run", run, *AUTO, *words) == 1
    output = capsys.readouterr().err
    assert content(run) == before
    assert "Traceback" not in output
    line = output.splitlines()[-1]
    assert "lightning-paf: error: --ckpt_path auto must find" in line
    assert "pass another --run" in line
    return line


def keep_weights_only(run: Path) -> None:
    for path in checkpoints(run):
        torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"], "global_step": 9}, path)


def remove_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def keep_metrics_only(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "metrics.csv":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_progress_only(run: Path) -> None:
    remove_checkpoints(run)
    (run / "metrics.csv").unlink()


def link_nowhere(run: Path) -> None:
    remove_checkpoints(run)
    (run / "checkpoints").symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (keep_weights_only, "last.ckpt holds weights only"),
        (remove_checkpoints, ", got only "),
        (keep_metrics_only, "metrics.csv with"),
        (keep_progress_only, "progress.json at step"),
        (link_nowhere, "checkpoints cannot be read (No such file or directory)"),
    ],
)
def test_auto_refuses_a_run_without_valid_checkpoints(change, reason, base, run, capsys):
    change(run)
    assert reason in refusal(base, run, capsys)


@pytest.mark.parametrize("change", [keep_metrics_only, link_nowhere])
def test_a_new_training_refuses_the_remains_of_a_run(change, base, run, capsys):
    change(run)
    before = content(run)
    assert status(*base, "--run", run) == 1
    assert "already holds one" in capsys.readouterr().err
    assert content(run) == before


def test_an_unreadable_checkpoint_is_not_replaced(base, run, capsys, monkeypatch):
    """One unreadable file is enough: it could be the newest."""
    denied = str(checkpoints(run)[-1])
    reason, load = os.strerror(errno.EACCES), torch.load

    def refuse(file, *args, **options):
        if str(file) == denied:
            raise OSError(errno.EACCES, reason, denied)
        return load(file, *args, **options)

    monkeypatch.setattr(torch, "load", refuse)
    assert f"{denied} cannot be read ({reason})" in refusal(base, run, capsys)
    assert status(*base, "--run", run, "--ckpt_path", denied) == 1
    assert f"{denied} cannot be read ({reason})" in capsys.readouterr().err


def test_a_run_that_failed_before_its_first_checkpoint_restarts(base, tmp_path):
    """A cluster that preempts a job repeats its command."""
    with pytest.raises(RuntimeError, match="stopped before step 1"):
        status(*base, "--run", tmp_path / "run", *AUTO, *at_step("FailsAt", 1))
    progress = Progress.read(tmp_path / "run" / FILE)
    assert (progress.step, progress.checkpoint) == (1, "")
    assert not checkpoints(tmp_path / "run")
    assert status(*base, "--run", tmp_path / "run", *AUTO) == 0
    assert checkpoints(tmp_path / "run")


def test_a_finished_run_without_checkpoints_is_not_replaced(base, tmp_path, capsys):
    without = [*base[:3], "--checkpoint", "null"]
    assert status(*without, "--run", tmp_path / "run") == 0
    refusal(without, tmp_path / "run", capsys)


def test_numpy_numbers_in_the_state_of_a_callback_are_restored(base, tmp_path, caplog):
    words = [*base, "--run", tmp_path / "run", *AUTO, "--trainer.callbacks+=helpers.resume_helpers.NumpyState"]
    with pytest.raises(RuntimeError, match="stopped before step 3"):
        status(*words, *at_step("FailsAt", 3))
    assert status(*words) == 0
    assert "step=2.ckpt, step 2." in caplog.text
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["callbacks"]["NumpyState"] == {"best": float(last["global_step"]), "steps": 3}


def test_a_state_that_cannot_be_restored_ends_the_training_at_its_first_save(base, tmp_path, capsys):
    words = [*base, "--run", tmp_path / "run", *AUTO]
    assert status(*words, PATH_STATE) == 1
    output = capsys.readouterr().err
    assert "Traceback" not in output
    assert "got pathlib.PosixPath at checkpoint['callbacks']['PathState']['where']" in output
    assert Progress.read(tmp_path / "run" / FILE).step == 2
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert status(*words) == 0
