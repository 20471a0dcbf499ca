"""Claims: one owner, heartbeats, and replacement of dead owners."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from lightning_paf.utils import claim as claim_file
from lightning_paf.utils import process as process_file
from lightning_paf.utils.claim import Claim, Heartbeats, Owner, read_owner

LINUX = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are looked up in /proc")  # noqa: PTH110


@pytest.fixture
def path(tmp_path):
    return tmp_path / "block-00000.claim"


class Observer:
    """Heartbeats observed by another process, with a controlled clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.heartbeats = Heartbeats(lambda: self.seconds)

    def take(self, path, timeout=60.0) -> Claim | None:
        return claim_file.take(path, timeout, self.heartbeats)

    def wait_and_take(self, path) -> Claim | None:
        assert self.take(path) is None
        self.seconds += 61
        return self.take(path)


def take(path, timeout) -> Claim | None:
    return claim_file.take(path, timeout, Heartbeats())


def leave(path, **change):
    """Write a claim without heartbeats."""
    path.write_text(json.dumps(asdict(replace(Owner.here(), **change))))


def test_a_claim_has_one_owner(path):
    with take(path, 60) as first:
        assert first.is_ours()
        assert take(path, 60) is None
    assert list(path.parent.iterdir()) == []
    with take(path, 60):
        pass
    assert str(Owner("box", 12, "", "", "")) == "process 12 on box"


def test_one_of_several_simultaneous_processes_gets_the_claim(path):
    barrier, taken = threading.Barrier(8), []

    def compete():
        barrier.wait()
        taken.append(take(path, 60))

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in taken) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_releases_the_claim(path, error):
    with pytest.raises(error), take(path, 60):
        raise error
    assert not path.exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("claim")]


def test_an_owner_elsewhere_is_replaced_after_the_time_limit(path):
    leave(path, system="another machine")
    observer = Observer()
    assert observer.take(path) is None
    observer.seconds += 59
    assert observer.take(path) is None
    observer.seconds += 2
    with observer.take(path) as claim:
        assert claim.is_ours()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_clocks_can_differ_by_hours(hours, path):
    """The owner's clock sets the time of the file, as on some file systems."""
    leave(path, system="another machine")
    observer, theirs = Observer(), time.time() + 3600 * hours
    for beat in range(10):
        os.utime(path, (theirs + 30 * beat, theirs + 30 * beat))
        assert observer.take(path) is None, "taken from a live owner"
        observer.seconds += 30
    assert observer.take(path) is None
    observer.seconds += 31
    assert observer.take(path) is not None, "kept for a dead owner"


def test_a_released_claim_has_no_heartbeats(path):
    observer = Observer()
    leave(path, system="another machine")
    assert observer.take(path) is None
    path.unlink()
    assert observer.heartbeats.silence(path) == 0
    observer.seconds += 61
    leave(path, system="another machine")
    assert observer.take(path) is None


def test_there_are_several_heartbeats_within_the_time_limit(path):
    with take(path, 0.4):
        for _ in range(3):
            before, end = path.stat().st_mtime_ns, time.monotonic() + 60
            while path.stat().st_mtime_ns == before:
                assert time.monotonic() < end
                time.sleep(0.01)


@LINUX
def test_a_dead_process_on_this_machine_is_replaced_at_once(path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave(path, pid=process.pid, started=process_file.start_of(process.pid))
    assert take(path, 60) is None
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, its status not collected
    with take(path, 60) as claim:
        assert claim.is_ours()
    process.communicate()
    leave(path, pid=process.pid, started="1")
    with take(path, 60):
        pass


@LINUX
def test_a_process_with_the_number_of_a_dead_one_is_another(path):
    leave(path, started=str(int(Owner.here().started) - 1))
    assert take(path, 60) is not None


def test_without_a_process_table_the_time_limit_decides(path, monkeypatch):
    monkeypatch.setattr(process_file, "this_system", lambda: "")
    monkeypatch.setattr(process_file, "start_of", lambda pid: "")
    leave(path, pid=2**22)
    assert Observer().wait_and_take(path) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"pid": 3}'])
def test_an_unreadable_claim_lasts_until_the_time_limit(path, content):
    path.write_text(content)
    assert read_owner(path) is None
    assert Observer().wait_and_take(path) is not None


def test_a_former_owner_does_not_change_the_claim_of_the_next(path):
    with take(path, 0.2) as first:
        leave(path)  # taken over, for example after a long suspension
        modified = path.stat().st_mtime_ns
        time.sleep(0.2)
        assert path.stat().st_mtime_ns == modified
        assert not first.is_ours()
    assert path.exists()


def test_a_new_claim_in_place_of_the_stale_one_is_restored(path, monkeypatch):
    leave(path, system="another machine")

    def overtaken(path, timeout, heartbeats):
        leave(path, pid=1)  # by a faster process
        return True

    monkeypatch.setattr(claim_file, "_is_stale", overtaken)
    assert take(path, 60) is None
    assert read_owner(path).pid == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_claim_released_during_the_check_is_free_in_the_next(path, monkeypatch):
    leave(path)
    monkeypatch.setattr(claim_file, "_is_stale", lambda path, timeout, heartbeats: path.unlink() or True)
    assert take(path, 60) is None
    monkeypatch.undo()
    assert take(path, 60) is not None


def test_a_claim_never_exists_without_its_owner(path, monkeypatch):
    """A process killed at any moment leaves a complete claim or none."""
    link, seen = os.link, []

    def watch(source, target):
        seen.append((target.exists(), read_owner(source)))
        link(source, target)
        seen.append((target.exists(), read_owner(target)))

    monkeypatch.setattr(os, "link", watch)
    claim = take(path, 60)
    assert seen == [(False, claim.owner), (True, claim.owner)]
