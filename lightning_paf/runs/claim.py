"""Leases: who works on what, agreed through files in a shared folder."""

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
from types import TracebackType

from lightning_paf.utils.files import create_whole
from lightning_paf.utils.process import Process

_BEATS = 6
"""Signs of life within the time-out, so that one may be late or be seen late (network file systems cache)."""


@dataclass(frozen=True)
class Holder(Process):
    """The process that holds a lease. Where its `system` is empty, only the time-out says that it is dead.

    Attributes:
        token: Of this lease alone.
        since: Date and time at which it was taken, UTC.
        command: Command line of the process.
    """

    token: str
    since: str = ""
    command: str = ""

    @classmethod
    def here(cls) -> "Holder":
        """This process, with a new token."""
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(**asdict(Process.this()), token=uuid.uuid4().hex, since=since, command=shlex.join(sys.orig_argv))


class Lease:
    """A lease that is held; a context manager that shows signs of life and gives the lease back, also after an error.

    The sign of life is the modification time of the file, set by a thread. The same thread calls `on_loss`, which does
    nothing by default, at every heartbeat that finds another process in the file, or no file.

    Args:
        path: Its file, which exists and names the holder.
        holder: This process.
        timeout: Seconds after which a silent holder counts as dead.
    """

    def __init__(self, path: Path, holder: Holder, timeout: float) -> None:
        self.path = path
        self.holder = holder
        self.on_loss: Callable[[], None] = lambda: None
        self._interval = timeout / _BEATS
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {path.name}", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self.is_ours():
                self.path.unlink()

    def is_ours(self) -> bool:
        """Whether nobody has taken it over."""
        return read_holder(self.path) == self.holder

    def _beat(self) -> None:
        while not self._over.wait(self._interval):
            with contextlib.suppress(OSError):  # a network folder may be away for a moment
                if self.is_ours():
                    os.utime(self.path)
                else:
                    self.on_loss()


class Watch:
    """What one process has seen of leases, by its own clock.

    A sign of life is a modification time that is another one than before; which one it is says nothing. So the clocks
    of the machines, and that of the folder, may be hours apart.

    Args:
        clock: Seconds since some moment; never set.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Path, tuple[int, float]] = {}
        self._beating: set[Path] = set()

    def silence(self, path: Path) -> float:
        """Seconds for which a lease has shown no sign of life; 0 at the first look, and for one that is gone."""
        try:
            with path.open("rb") as stream:  # network file systems ask the server when a file is opened
                sign = os.fstat(stream.fileno()).st_mtime_ns
        except FileNotFoundError:
            self._seen.pop(path, None)
            self._beating.discard(path)
            return 0.0
        now = self._clock()
        last, since = self._seen.setdefault(path, (sign, now))
        if last != sign:
            self._seen[path] = (sign, now)
            self._beating.add(path)
            return 0.0
        return now - since

    def has_seen_heartbeat(self, path: Path) -> bool:
        """Whether `silence` has found a new sign of life since its first look at a lease."""
        return path in self._beating


def take(path: Path, timeout: float, watch: Watch) -> Lease | None:
    """Take a lease that is free, or whose holder is dead.

    A holder on this machine is dead when its process is gone; any holder is when `watch` has seen no sign of life for
    `timeout`. Taking over has no perfect lock: in a tiny window two may come to hold the same lease. Both then do the
    same work, which is why the work must have the same result whoever does it.

    Args:
        path: File of the lease, in a folder that exists.
        timeout: Seconds.
        watch: Of this process, the same at every look.

    Returns:
        The lease, or None if somebody holds it.

    Raises:
        OSError: The folder cannot be written to.
    """
    holder = Holder.here()
    before = _content(path)
    if before is not None and not (_is_stale(path, timeout, watch) and _move_away(path, before, holder)):
        return None
    return Lease(path, holder, timeout) if _create(path, holder) else None


def read_holder(path: Path) -> Holder | None:
    """Who holds a lease; None if nobody does, or its file is not complete yet."""
    try:
        return Holder(**json.loads(_content(path) or b""))
    except (ValueError, TypeError):
        return None


def _is_stale(path: Path, timeout: float, watch: Watch) -> bool:
    holder = read_holder(path)
    return (holder is not None and holder.is_dead()) or watch.silence(path) > timeout


def _create(path: Path, holder: Holder) -> bool:
    return create_whole(path, json.dumps(asdict(holder)).encode())


def _move_away(path: Path, stale: bytes, holder: Holder) -> bool:
    """Remove a stale lease. False if another process was faster; what it made is put back."""
    aside = path.with_name(f"{path.name}.{holder.token[:8]}.stale")
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
