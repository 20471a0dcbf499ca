"""Which process on which machine, so that others can tell whether it still runs."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same number.

    Attributes:
        host: Name of the machine, for people.
        pid: Process.
        started: When the process started, in the kernel's ticks: a new process may have the number of a dead one.
        system: The machine since its last start, and its process numbers (containers have their own); empty where this
            cannot be told, and then nobody is known to be dead.
    """

    host: str
    pid: int
    started: str
    system: str

    @classmethod
    def this(cls) -> "Process":
        """This process."""
        pid = os.getpid()
        return cls(platform.node(), pid, start_of(pid), this_system())

    def is_near(self) -> bool:
        """Whether its life can be seen from here."""
        return bool(self.system) and self.system == this_system()

    def is_dead(self) -> bool:
        """Whether the process is known to be gone; of one elsewhere, nothing is known."""
        return self.is_near() and self.started != start_of(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_system() -> str:
    """This start of this machine and this set of process numbers, where Linux tells; otherwise empty."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """When a process started; empty if there is none, or nothing left of it but its exit status."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZXx" else fields[18]
