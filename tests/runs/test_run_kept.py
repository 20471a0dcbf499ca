"""A run is never replaced by a new training, whatever has become of its files."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.ddp_worker import run_all
from helpers.forked_ranks import Ranks
from helpers.resume_helpers import tree

from lightning_paf.runs.lock import FILE as LOCK
from lightning_paf.runs.progress import FILE, Progress

AUTO = ["--ckpt_path", "auto"]


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


def is_refused(base, run, capsys, *words) -> str:
    """Whether `auto` ends with one line and leaves everything as it was."""
    before = tree(run)
    capsys.readouterr()
    assert status(*base, "--run", run, *AUTO, *words) == 1
    said = capsys.readouterr().err
    assert tree(run) == before
    assert "Traceback" not in said
    assert "lightning-paf: error: --ckpt_path auto must find" in said.splitlines()[-1]
    assert "pass another --run" in said.splitlines()[-1]
    return said


def make_weights_only(run: Path) -> None:
    for path in checkpoints(run):
        torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"], "global_step": 9}, path)


def make_damaged(run: Path) -> None:
    for path in checkpoints(run):
        path.write_bytes(path.read_bytes()[:-100])


def make_foreign(run: Path) -> None:
    for path in checkpoints(run):
        torch.save(torch.load(path, weights_only=True) | {"callbacks": {"Mine": Path("a")}}, path)


def make_none(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def make_metrics_only(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "metrics.csv":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_progress_only(run: Path) -> None:
    make_none(run)
    (run / "metrics.csv").unlink()


def make_dangling(run: Path) -> None:
    make_none(run)
    (run / "checkpoints").symlink_to("elsewhere")


def make_file(run: Path) -> None:
    make_none(run)
    (run / "checkpoints").write_text("moved to the archive")


LEFT = {
    "weights": (make_weights_only, "last.ckpt holds weights only"),
    "damaged": (make_damaged, "last.ckpt is damaged"),
    "foreign": (make_foreign, "last.ckpt holds objects that are not plain values (pathlib.PosixPath)"),
    "none": (make_none, "but there are none, only"),
    "metrics": (make_metrics_only, "metrics.csv with"),
    "progress": (make_progress_only, "progress.json at step"),
    "link": (make_dangling, "checkpoints cannot be read (No such file or directory)"),
    "file": (make_file, "checkpoints cannot be read (Not a directory)"),
}


@pytest.mark.parametrize(("leave", "reason"), LEFT.values(), ids=LEFT)
def test_what_is_left_of_a_run_is_not_replaced(leave, reason, base, run, capsys):
    leave(run)
    assert reason in is_refused(base, run, capsys)


@pytest.mark.parametrize("leave", [make_metrics_only, make_dangling])
def test_nor_is_it_without_auto(leave, base, run, capsys):
    leave(run)
    before = tree(run)
    assert status(*base, "--run", run) == 1
    assert "already holds one" in capsys.readouterr().err
    assert tree(run) == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_checkpoints_that_cannot_be_read_are_not_replaced(code, base, run, capsys, monkeypatch):
    """One of them is enough: it may be the newest."""
    denied = str(checkpoints(run)[-1])
    real, load = os.strerror(code), torch.load

    def refusing(file, *args, **options):
        if str(file) == denied:
            raise OSError(code, real, denied)
        return load(file, *args, **options)

    monkeypatch.setattr(torch, "load", refusing)
    assert f"{denied} cannot be read ({real})" in is_refused(base, run, capsys)
    assert status(*base, "--run", run, "--ckpt_path", denied) == 1
    assert re.search(rf"{re.escape(denied)} cannot be read \({real}\)", capsys.readouterr().err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_checkpoint_without_permission_is_not_replaced(base, run, capsys):
    checkpoints(run)[-1].chmod(0)
    try:
        with pytest.raises(PermissionError):
            checkpoints(run)[-1].read_bytes()
        said = [status(*base, "--run", run, *AUTO), capsys.readouterr().err]
    finally:
        checkpoints(run)[-1].chmod(0o600)
    assert said[0] == 1
    assert "cannot be read (Permission denied)" in said[1]


def test_a_run_that_was_killed_before_its_first_checkpoint_restarts(base, tmp_path):
    """A preempting cluster starts the same command again, and has nobody to ask."""
    killed = ["--trainer.callbacks+=helpers.resume_helpers.FailsAt", "--trainer.callbacks.step", "1"]
    with pytest.raises(RuntimeError, match="stopped before step 1"):
        status(*base, "--run", tmp_path / "run", *AUTO, *killed)
    progress = Progress.read(tmp_path / "run" / FILE)
    assert (progress.step, progress.checkpoint) == (1, "")
    assert not checkpoints(tmp_path / "run")
    assert status(*base, "--run", tmp_path / "run", *AUTO) == 0
    assert checkpoints(tmp_path / "run")


def test_a_run_without_checkpoints_that_is_finished_is_not_replaced(base, tmp_path, capsys):
    without = [*base[:3], "--checkpoint", "null"]
    assert status(*without, "--run", tmp_path / "run") == 0
    is_refused(without, tmp_path / "run", capsys)


def test_numpy_numbers_in_the_state_of_a_callback_are_resumed(base, tmp_path, caplog):
    words = [*base, "--run", tmp_path / "run", *AUTO, "--trainer.callbacks+=helpers.resume_helpers.Remembers"]
    stopped = ["--trainer.callbacks+=helpers.resume_helpers.FailsAt", "--trainer.callbacks.step", "3"]
    with pytest.raises(RuntimeError, match="stopped before step 3"):
        status(*words, *stopped)
    assert status(*words) == 0
    assert "step=2.ckpt, step 2." in caplog.text
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["callbacks"]["Remembers"] == {"best": float(last["global_step"]), "steps": 3}


def test_a_state_that_could_not_be_resumed_ends_the_training_at_its_first_save(base, tmp_path, capsys):
    words = [*base, "--run", tmp_path / "run", *AUTO]
    for _ in range(2):
        assert status(*words, "--trainer.callbacks+=helpers.resume_helpers.RemembersAPath") == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert "got pathlib.PosixPath at checkpoint['callbacks']['RemembersAPath']['where']" in said
        assert Progress.read(tmp_path / "run" / FILE).step == 2
        assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert status(*words) == 0


@pytest.mark.slow
def test_it_ends_all_ranks(base, tmp_path):
    ddp = [
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
        "--trainer.callbacks+=helpers.resume_helpers.RemembersAPath",
    ]
    words = [*base, *ddp, "--run", str(tmp_path / "run")]
    ranks = Ranks(2, tmp_path / "logs", run_all, [(words, 1)], tmp_path / "saved").wait()
    assert "got pathlib.PosixPath at checkpoint['callbacks']" in ranks.output[0], str(ranks)
    assert ranks.status[1] is not None
    assert not (tmp_path / "run" / LOCK).exists()
