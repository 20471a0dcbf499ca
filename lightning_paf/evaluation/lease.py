"""Leases: who works on what, agreed through files in a shared folder."""

import contextlib
import json
import os
import platform
import threading
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from lightning_paf.evaluation.files import create_whole

_BEATS = 4
"""Signs of life within the time-out, so that one may be late or be seen late (network file systems cache)."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        host: Name of the machine, for people.
        pid: Process.
        started: When the process started, in the kernel's ticks: a new process may have the number of a dead one.
        system: The machine since its last start, and its process numbers (containers have their own); empty where this
            cannot be told, and then only the time-out says that a holder is dead.
        token: Of this lease alone.
    """

    host: str
    pid: int
    started: str
    system: str
    token: str

    @classmethod
    def here(cls) -> "Holder":
        """This process, with a new token."""
        pid = os.getpid()
        return cls(platform.node(), pid, _start_of(pid), _system(), uuid.uuid4().hex)

    def is_dead(self) -> bool:
        """Whether the process is known to be gone; of one elsewhere, nothing is known."""
        return bool(self.system) and self.system == _system() and self.started != _start_of(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """A lease that is held; a context manager that shows signs of life and gives the lease back, also after an error.

    The sign of life is the modification time of the file, set by a thread.

    Args:
        path: Its file, which exists and names the holder.
        holder: This process.
        timeout: Seconds after which a silent holder counts as dead.
    """

    def __init__(self, path: Path, holder: Holder, timeout: float) -> None:
        self.path = path
        self.holder = holder
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


def take(path: Path, timeout: float) -> Lease | None:
    """Take a lease that is free, or whose holder is dead.

    A holder on this machine is dead when its process is gone; any holder is when its last sign of life is older than
    `timeout`, by the clock of the folder, so that the clocks of the machines need not agree. Taking over has no perfect
    lock: in a tiny window two may come to hold the same lease. Both then do the same work, which is why the work must
    have the same result whoever does it.

    Args:
        path: File of the lease, in a folder that exists.
        timeout: Seconds.

    Returns:
        The lease, or None if somebody holds it.

    Raises:
        OSError: The folder cannot be written to.
    """
    holder = Holder.here()
    before = _content(path)
    if before is not None and not (_is_stale(path, timeout) and _move_away(path, before, holder)):
        return None
    return Lease(path, holder, timeout) if _create(path, holder) else None


def read_holder(path: Path) -> Holder | None:
    """Who holds a lease; None if nobody does, or its file is not complete yet."""
    try:
        return Holder(**json.loads(_content(path) or b""))
    except (ValueError, TypeError):
        return None


def silence(path: Path) -> float:
    """Seconds since the last sign of life; 0 for a lease that is gone."""
    clock = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.clock")
    clock.touch()  # the time of the file system that keeps the leases, not of this machine
    try:
        return max(0.0, clock.stat().st_mtime - path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0
    finally:
        clock.unlink(missing_ok=True)


def _is_stale(path: Path, timeout: float) -> bool:
    holder = read_holder(path)
    return (holder is not None and holder.is_dead()) or silence(path) > timeout


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


def _system() -> str:
    """This start of this machine and this set of process numbers, where Linux tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started; empty if there is none, or nothing left of it but its exit status."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZXx" else fields[18]
