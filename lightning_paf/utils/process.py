"""Identity of a process on a machine, to find out whether it still runs."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, distinguished from a later one with the same number.

    Attributes:
        host: Name of the machine.
        pid: Process.
        started: When the process started, in the kernel's ticks: a new process may have the number of a dead one.
        system: The machine since its last start, and its process namespace; empty if unknown, and then no process is
            known to be dead.
    """

    host: str
    pid: int
    started: str
    system: str

    @classmethod
    def this(cls) -> "Process":
        """Return this process."""
        pid = os.getpid()
        return cls(platform.node(), pid, start_of(pid), this_system())

    def is_near(self) -> bool:
        """Return whether the process is visible from this one."""
        return bool(self.system) and self.system == this_system()

    def is_dead(self) -> bool:
        """Return whether the process is known to be gone; unknown for one on another machine."""
        return self.is_near() and self.started != start_of(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_system() -> str:
    """Return the start of this machine and its process namespace on Linux; otherwise an empty text."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """Return the start time of a process; empty if there is none, or only its exit status is left."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZXx" else fields[18]
