"""Lock of a run folder: live, dead and suspended owners, here or elsewhere."""

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
from helpers.resume_helpers import at_step, content

from lightning_paf.runs import lock as run_lock
from lightning_paf.runs.lock import FILE, locked
from lightning_paf.runs.progress import FILE as PROGRESS
from lightning_paf.utils.claim import Owner, read_owner

AUTO = ["--ckpt_path", "auto"]
SECONDS = 120  # far more than any of these takes
ELSEWHERE = {"host": "node7", "system": "another machine", "token": "theirs"}


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch):
    monkeypatch.setattr(run_lock, "_PAUSE", 0.05)


def leave_lock(folder: Path, **change: Any) -> Path:
    """Write the lock of a process without heartbeats."""
    (folder / FILE).write_text(json.dumps(asdict(replace(Owner.here(), **change))))
    return folder / FILE


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match="must be used by one training at a time") as error, locked(folder):
        pass
    return str(error.value)


def test_the_owner_is_named(tmp_path):
    with locked(tmp_path):
        message = refusal(tmp_path)
    here = Owner.here()
    assert f"process {here.pid} on {here.host} since {here.since[:10]}" in message
    assert f"({here.command})" in message
    assert "Pass another --run, or stop that process first." in message
    with locked(tmp_path):
        pass


def test_an_empty_folder_is_removed(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / FILE).is_file()
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "config.yaml").touch()
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["config.yaml"]


def test_an_owner_elsewhere_without_heartbeat_is_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_lock, "TIMEOUT", 0.5)
    leave_lock(tmp_path, **ELSEWHERE)
    start = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - start > 0.5
        assert read_owner(tmp_path / FILE).pid == os.getpid()
    assert "waiting for a heartbeat" in caplog.text
    assert f"Taking over {tmp_path} from process {os.getpid()} on node7" in caplog.text
    assert not list(tmp_path.iterdir())


def test_an_owner_elsewhere_is_alive_after_its_first_heartbeat(tmp_path):
    path, over = leave_lock(tmp_path, **ELSEWHERE), threading.Event()

    def beat() -> None:
        for seconds in range(1000):
            if over.wait(0.1):
                return
            os.utime(path, (seconds, seconds))  # a clock that is years behind

    thread = threading.Thread(target=beat)
    thread.start()
    start = time.monotonic()
    try:
        assert "on node7" in refusal(tmp_path)
    finally:
        over.set()
        thread.join()
    assert time.monotonic() - start < run_lock.TIMEOUT / 2


def test_a_lock_released_during_the_wait_is_taken_at_once(tmp_path):
    """A preempted job saves and ends after its successor has started."""
    path = leave_lock(tmp_path, **ELSEWHERE)
    threading.Timer(0.2, path.unlink).start()
    with locked(tmp_path):
        assert read_owner(path).pid == os.getpid()


@pytest.mark.parametrize("text", ["", "[1]"])
def test_an_incomplete_lock_lasts_until_the_time_limit(text, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "TIMEOUT", 0.3)
    (tmp_path / FILE).write_text(text)
    with locked(tmp_path):
        assert read_owner(tmp_path / FILE).pid == os.getpid()
    assert not list(tmp_path.iterdir())


class Ended(BaseException):
    """Raised instead of ending the process."""


@pytest.fixture
def ended(monkeypatch):
    def end(code):
        raise Ended(code)

    monkeypatch.setattr(run_lock.os, "_exit", end)


def removed(path: Path) -> None:
    path.unlink()


def taken(path: Path) -> None:
    leave_lock(path.parent, **ELSEWHERE)


def emptied(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize("lose", [removed, taken, emptied])
def test_a_process_that_has_lost_the_folder_ends_before_a_write(lose, ended, tmp_path, capsys):
    with locked(tmp_path) as check_owner:
        check_owner()
        lose(tmp_path / FILE)
        with pytest.raises(Ended, match="1"):
            check_owner()
    assert f"This training has lost its run folder: {tmp_path / FILE}" in capsys.readouterr().err
    assert (tmp_path / FILE).exists() == (lose is not removed), "the lock of another process was removed"


def test_a_lock_that_another_process_checks_is_not_lost(ended, tmp_path):
    """The other process moves the file, and restores it."""
    with locked(tmp_path) as check_owner:
        aside = (tmp_path / FILE).rename(tmp_path / "aside")
        threading.Timer(0.01, aside.rename, [tmp_path / FILE]).start()
        check_owner()


def test_the_heartbeat_thread_detects_a_lost_folder(tmp_path, monkeypatch):
    lost = threading.Event()
    monkeypatch.setattr(run_lock, "TIMEOUT", 0.3)
    monkeypatch.setattr(run_lock, "check_owner", lambda path, owner: lost.set())
    with locked(tmp_path):
        leave_lock(tmp_path, **ELSEWHERE)
        assert lost.wait(SECONDS)


class Training:
    """A `fit` in another process that waits before its third step."""

    def __init__(self, base: list[str], folder: Path) -> None:
        self.folder, self.log, self.run = folder, folder / "log", folder / "run"
        words = [*base, "--run", str(self.run), *AUTO, *at_step("WaitsAt", 2, folder=folder)]
        self.process = started(status, *words, log=self.log)
        end = time.monotonic() + SECONDS
        while not (folder / "waits").exists():
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def resume(self) -> int | None:
        """Let it continue, and return its exit status."""
        (self.folder / "go").touch()
        self.process.join(SECONDS)
        return self.process.exitcode


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> list[str]:
    return ["fit", "-c", write_experiment(tmp_path_factory.mktemp("tiny")), "--periodic.every_n_train_steps", "1"]


@pytest.fixture
def training(base, tmp_path):
    training = Training(base, tmp_path)
    yield training
    training.process.kill()
    training.process.join()


def test_a_second_training_is_refused_and_changes_nothing(base, training, capsys):
    run = training.run
    (checkpoint,) = (run / "checkpoints").glob("step=2.ckpt")

    def files() -> dict[str, bytes]:
        return {name: data for name, data in content(run).items() if name != PROGRESS}

    before = files()
    for words in ([], ["--trainer.max_epochs", "9", *AUTO]):
        capsys.readouterr()
        assert status(*base, "--run", run, *words) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert f"error: A run folder must be used by one training at a time, but {run} is in use by process" in message
        assert f"process {training.process.pid} on " in message
    assert status(*base, "--run", run, "--trainer.fast_dev_run", "true") == 0
    assert files() == before
    assert (
        status("test", "--ckpt_path", checkpoint, "--trust-config") == 0
    )  # the configuration names a callback of tests
    assert training.resume() == 0, training.log.read_text()
    assert not (run / FILE).exists()


def test_a_killed_training_resumes_at_once(base, training, caplog):
    run = training.run
    training.process.kill()
    training.process.join()
    assert (run / FILE).exists()
    assert status(*base, "--run", run, *AUTO) == 0
    assert "waiting for a heartbeat" not in caplog.text
    assert f"Taking over {run} from process {training.process.pid} on " in caplog.text
    assert "step=2.ckpt, step 2." in caplog.text
    assert not (run / FILE).exists()


def test_a_suspended_process_that_was_replaced_writes_nothing(training):
    """Another machine has taken over the folder, and trains there or has finished."""
    run = training.run
    os.kill(training.process.pid, signal.SIGSTOP)
    leave_lock(run, **ELSEWHERE)
    (run / "checkpoints" / ".unfinished").write_text("theirs")
    before = content(run)
    os.kill(training.process.pid, signal.SIGCONT)
    assert training.resume() == 1
    assert "This training has lost its run folder" in training.log.read_text()
    assert content(run) == before
