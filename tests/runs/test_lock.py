"""One training at a time in a run folder: two processes, dead ones, owners elsewhere, and owners that wake up late."""

import json
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.cli_runs import status, write_experiment
from helpers.processes import started
from helpers.resume_helpers import tree

from lightning_paf.runs import lock as run_lock
from lightning_paf.runs.claim import Owner, read_owner
from lightning_paf.runs.lock import FILE, locked
from lightning_paf.runs.progress import FILE as PROGRESS

AUTO = ["--ckpt_path", "auto"]
SECONDS = 120  # far more than any of these takes
ELSEWHERE = {"host": "node7", "system": "another machine", "token": "theirs"}


def leave_lock(folder: Path, **change: Any) -> Path:
    """The lock of a process that writes no heartbeats."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(asdict(replace(Owner.here(), **change))))
    return folder / FILE


def beating(path: Path, over: threading.Event) -> threading.Thread:
    def beat() -> None:
        for seconds in range(1000):
            if over.wait(0.1):
                return
            os.utime(path, (seconds, seconds))  # a clock that is years slow

    thread = threading.Thread(target=beat)
    thread.start()
    return thread


def is_locked(folder: Path) -> str:
    with pytest.raises(ValueError, match="must be used by one training at a time") as error, locked(folder):
        pass
    return str(error.value)


def test_the_owner_is_named(tmp_path):
    with locked(tmp_path):
        said = is_locked(tmp_path)
    here = Owner.here()
    assert f"process {here.pid} on {here.host} since {here.since[:10]}" in said
    assert f"({here.command})" in said
    assert "Pass another --run, or stop that process first." in said
    with locked(tmp_path):
        pass


def test_nothing_is_left_of_a_folder_in_which_nothing_was_written(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / FILE).is_file()
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "config.yaml").touch()
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["config.yaml"]


def test_a_silent_owner_elsewhere_is_waited_for_and_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_lock, "TIMEOUT", 1.0)
    monkeypatch.setattr(run_lock, "_PAUSE", 0.05)
    leave_lock(tmp_path, **ELSEWHERE)
    begun = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - begun > 1
        assert read_owner(tmp_path / FILE).pid == os.getpid()
    assert "waiting for a heartbeat" in caplog.text
    assert f"Taking over {tmp_path} from process {os.getpid()} on node7" in caplog.text
    assert not list(tmp_path.iterdir())


def test_an_owner_elsewhere_is_alive_as_soon_as_it_shows_a_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_PAUSE", 0.05)
    path, over = leave_lock(tmp_path, **ELSEWHERE), threading.Event()
    thread = beating(path, over)
    begun = time.monotonic()
    try:
        assert "on node7" in is_locked(tmp_path)
    finally:
        over.set()
        thread.join()
    assert time.monotonic() - begun < run_lock.TIMEOUT / 2


def test_an_owner_that_releases_while_we_wait_is_followed_at_once(tmp_path, monkeypatch):
    """A job that was preempted saves and ends; its successor is started meanwhile."""
    monkeypatch.setattr(run_lock, "_PAUSE", 0.05)
    path = leave_lock(tmp_path, **ELSEWHERE)
    threading.Timer(0.5, path.unlink).start()
    with locked(tmp_path):
        assert read_owner(path).pid == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_torn_lock_lasts_until_the_time_limit(content, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "TIMEOUT", 0.5)
    (tmp_path / FILE).write_text(content)
    with locked(tmp_path):
        assert read_owner(tmp_path / FILE) == read_owner(tmp_path / FILE)
    assert not list(tmp_path.iterdir())


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def ended(monkeypatch):
    def end(code):
        raise Ended(code)

    monkeypatch.setattr(run_lock.os, "_exit", end)
    monkeypatch.setattr(run_lock, "_PAUSE", 0.05)


def removed(path: Path) -> None:
    path.unlink()


def taken(path: Path) -> None:
    leave_lock(path.parent, **ELSEWHERE)


def emptied(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize("lose", [removed, taken, emptied])
def test_who_has_lost_the_folder_ends_before_a_write(lose, ended, tmp_path, capsys):
    with locked(tmp_path) as check_owner:
        check_owner()
        lose(tmp_path / FILE)
        with pytest.raises(Ended, match="1"):
            check_owner()
    said = capsys.readouterr().err
    assert f"This training has lost its run folder: {tmp_path / FILE}" in said
    assert (tmp_path / FILE).exists() == (lose is not removed), "the lock of another one was removed"


def test_a_lock_that_is_away_for_an_instant_is_not_lost(ended, tmp_path):
    """Another process looks whether it is that of a dead one, and puts it back."""
    with locked(tmp_path) as check_owner:
        aside = (tmp_path / FILE).rename(tmp_path / "aside")
        threading.Timer(0.01, aside.rename, [tmp_path / FILE]).start()
        check_owner()


def test_the_thread_of_the_heartbeats_notices_too(tmp_path, monkeypatch):
    lost = threading.Event()
    monkeypatch.setattr(run_lock, "TIMEOUT", 0.3)
    monkeypatch.setattr(run_lock, "check_owner", lambda path, owner: lost.set())
    with locked(tmp_path):
        leave_lock(tmp_path, **ELSEWHERE)
        assert lost.wait(SECONDS)


class Training:
    """A `fit` in a process of its own that waits before its third step."""

    def __init__(self, base: list[str], run: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.log = folder, folder / "log"
        waits = ["--trainer.callbacks+=helpers.resume_helpers.WaitsAt", "--trainer.callbacks.step", "2"]
        words = [*base, "--run", str(run), *AUTO, *waits, "--trainer.callbacks.folder", str(folder)]
        self.process = started(status, *words, log=self.log)
        end = time.monotonic() + SECONDS
        while not (folder / "waits").exists():
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def goes_on(self) -> int | None:
        (self.folder / "go").touch()
        self.process.join(SECONDS)
        return self.process.exitcode


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), "--periodic.every_n_train_steps", "1"]


@pytest.fixture
def training(base, tmp_path):
    training = Training(base, tmp_path / "run", tmp_path / "first")
    yield training
    training.process.kill()
    training.process.join()


def test_a_second_training_is_refused_and_changes_nothing(base, training, tmp_path, capsys):
    run = tmp_path / "run"
    (checkpoint,) = (run / "checkpoints").glob("step=2.ckpt")

    def content() -> dict[str, str]:
        return {name: digest for name, digest in tree(run).items() if name != PROGRESS}

    before = content()
    for words in ([], AUTO, ["--ckpt_path", checkpoint], ["--trainer.max_epochs", "9", *AUTO]):
        capsys.readouterr()
        assert status(*base, "--run", run, *words) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"error: A run folder must be used by one training at a time, but {run} is in use by process" in said
        assert f"process {training.process.pid} on " in said
    assert content() == before
    assert status(*base, "--run", run, "--trainer.fast_dev_run", "true") == 0
    assert content() == before
    assert status("test", "--ckpt_path", checkpoint, "--trust-config") == 0  # it names a callback of the tests
    assert training.goes_on() == 0, training.log.read_text()
    assert not (run / FILE).exists()


def test_after_a_kill_the_same_command_continues_at_once(base, training, tmp_path, caplog):
    run = tmp_path / "run"
    training.process.kill()
    training.process.join()
    assert (run / FILE).exists()
    assert status(*base, "--run", run, *AUTO) == 0
    assert "waiting for a heartbeat" not in caplog.text
    assert f"Taking over {run} from process {training.process.pid} on " in caplog.text
    assert "step=2.ckpt, step 2." in caplog.text
    assert not (run / FILE).exists()


def test_a_process_that_wakes_up_after_it_was_replaced_writes_nothing(training, tmp_path):
    """Another machine has taken the folder over, and is training there or has finished."""
    run = tmp_path / "run"
    os.kill(training.process.pid, signal.SIGSTOP)
    leave_lock(run, **ELSEWHERE)
    (run / "checkpoints" / ".unfinished").write_text("theirs")
    before = tree(run)
    os.kill(training.process.pid, signal.SIGCONT)
    assert training.goes_on() == 1
    assert "This training has lost its run folder" in training.log.read_text()
    assert tree(run) == before
