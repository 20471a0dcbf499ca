"""Identity of a process on a machine, and the end of its helpers."""

import multiprocessing
import os
import platform
import threading
from dataclasses import dataclass
from pathlib import Path

EXIT_STATUS = 75
"""Exit status of a command that a signal has stopped (EX_TEMPFAIL): restart it."""


@dataclass(frozen=True)
class Process:
    """A process, distinguished from a later one with the same PID.

    Attributes:
        host: Name of the machine.
        pid: Process ID.
        started: Start time in clock ticks of the kernel, since PIDs are reused.
        system: Boot and process namespace of the machine; empty if unknown; then no process is considered ended.
    """

    host: str
    pid: int
    started: str
    system: str

    @classmethod
    def this(cls) -> "Process":
        """Return the calling process."""
        pid = os.getpid()
        return cls(platform.node(), pid, start_of(pid), this_system())

    def is_near(self) -> bool:
        """Return whether the process is visible from the calling one."""
        return bool(self.system) and self.system == this_system()

    def is_dead(self) -> bool:
        """Return whether a local process has ended; False on another machine."""
        return self.is_near() and self.started != start_of(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def end_with_parent() -> None:
    """End this process of a pool when its parent ends.

    Otherwise it waits for work forever.
    """
    threading.Thread(target=_await_end_of_parent, daemon=True).start()


def _await_end_of_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def this_system() -> str:
    """Return the boot and PID namespace on Linux; empty on other systems."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """Return the start time of a process; empty if it has ended.

    A zombie process counts as ended.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZXx" else fields[18]
