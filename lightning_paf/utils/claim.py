"""Claims: files in a shared folder that assign pieces of work to processes."""

import contextlib
import json
import os
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from lightning_paf.utils.files import create_whole, parse_json
from lightning_paf.utils.process import Process

_BEATS = 6
"""Heartbeats per time limit, so that one late heartbeat is tolerated."""


@dataclass(frozen=True)
class Owner(Process):
    """The process that owns a claim.

    Attributes:
        token: Unique for each claim.
        since: Start of the claim, date and time in UTC.
        command: Command line of the process.
    """

    token: str
    since: str = ""
    command: str = ""

    @classmethod
    def here(cls) -> "Owner":
        """Return this process, with a new token."""
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(**asdict(Process.this()), token=uuid.uuid4().hex, since=since, command=shlex.join(sys.orig_argv))


class Claim:
    """Claim owned by this process, with heartbeats, as a context manager.

    The claim is released at the end. A heartbeat sets the modification time of the file, in a thread. If the file was
    removed or has another owner, the thread calls `on_loss` instead, which does nothing by default.

    Args:
        path: Existing file that names the owner.
        owner: This process.
        timeout: Seconds without a heartbeat after which an owner counts as dead.
    """

    def __init__(self, path: Path, owner: Owner, timeout: float) -> None:
        self.path = path
        self.owner = owner
        self.on_loss: Callable[[], None] = lambda: None
        self._interval = timeout / _BEATS
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim {path.name}", daemon=True)

    def __enter__(self) -> "Claim":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(self._interval)  # a network folder can be unavailable
        with contextlib.suppress(OSError):
            if self.is_ours():
                self.path.unlink()

    def is_ours(self) -> bool:
        """Return whether no other process has taken the claim over."""
        return read_owner(self.path) == self.owner

    def _beat(self) -> None:
        while not self._over.wait(self._interval):
            with contextlib.suppress(OSError):  # a network folder can be unavailable for a moment
                if self.is_ours():
                    os.utime(self.path)
                else:
                    self.on_loss()


class Heartbeats:
    """Heartbeats that one process has observed, timed by its own clock.

    A heartbeat is a change of the modification time, to any value, so that the clocks of the machines and of the
    folder can differ by hours.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Path, tuple[int, float]] = {}
        self._beating: set[Path] = set()

    def silence(self, path: Path) -> float:
        """Return seconds since the last heartbeat, 0 at the first call or without file."""
        try:
            with path.open("rb") as stream:  # network file systems query the server when a file is opened
                modified = os.fstat(stream.fileno()).st_mtime_ns
        except FileNotFoundError:
            self._seen.pop(path, None)
            self._beating.discard(path)
            return 0.0
        now = self._clock()
        last, since = self._seen.setdefault(path, (modified, now))
        if last != modified:
            self._seen[path] = (modified, now)
            self._beating.add(path)
            return 0.0
        return now - since

    def any_of(self, path: Path) -> bool:
        """Return whether `silence` has observed a heartbeat of a claim."""
        return path in self._beating


def take(path: Path, timeout: float, heartbeats: Heartbeats) -> Claim | None:
    """Take a claim that is free, or whose owner is dead.

    An owner on this machine is dead when its process has ended; any owner is dead after `timeout` without a heartbeat.
    In a tiny window two processes can take over the same claim and do the same work, which must be deterministic.

    Args:
        path: File of the claim, in an existing folder.
        timeout: Seconds.
        heartbeats: Observations of this process, the same object in every call.

    Returns:
        The claim, or None if another process owns it.

    Raises:
        OSError: The folder cannot be written to.
    """
    owner, before = Owner.here(), _content(path)
    if before is not None and not (_is_stale(path, timeout, heartbeats) and _remove(path, before, owner)):
        return None
    return Claim(path, owner, timeout) if create_whole(path, json.dumps(asdict(owner)).encode()) else None


def read_owner(path: Path) -> Owner | None:
    """Read the owner of a claim; None if there is none, or the file is incomplete."""
    try:
        return Owner(**parse_json(_content(path) or b""))
    except (ValueError, TypeError):
        return None


def _is_stale(path: Path, timeout: float, heartbeats: Heartbeats) -> bool:
    owner = read_owner(path)
    return (owner is not None and owner.is_dead()) or heartbeats.silence(path) > timeout


def _remove(path: Path, stale: bytes, owner: Owner) -> bool:
    """Remove a stale claim; return False if another process was faster."""
    aside = path.with_name(f"{path.name}.{owner.token[:8]}.stale")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    same = _content(aside) == stale
    if not same:
        with contextlib.suppress(OSError):  # if this fails, two do the same work
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return same


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
