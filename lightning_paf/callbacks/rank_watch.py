"""A rank that dies ends the job, with one message that names it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from lightning_paf.utils.distributed import gathered
from lightning_paf.utils.process import Process

FOLDER = ".ranks"
_GLANCE = 0.25
"""Seconds between two looks at the processes of this machine."""
_LOOKS = 5
"""Looks at the files within the time-out."""
_PATIENCE = 5.0
"""Seconds in which a process that has closed its connections disappears."""
_OLD = 86400.0
"""Seconds after which a file without a sign of life is of no use to anybody."""


class RankWatch(Callback):
    """Ends all processes of a job when one of them has died, and says which.

    Without it, ranks wait for a dead one until the process group's time-out, or fail with an error of the network that
    names no rank. On one machine a death is seen at once; on other machines a rank counts as dead after `timeout`
    seconds without a sign of life, which is a file of its own in `RUN/.ranks`, touched by a thread. No clocks are
    compared. A rank that lives and does not answer is a matter of the process group's time-out.

    Args:
        timeout: Seconds. Network folders may show a change a minute late.

    Raises:
        ValueError: The time-out is not positive.
    """

    def __init__(self, timeout: float = 120.0) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout={timeout} would declare every rank dead. Give seconds, such as 120.")
        self.timeout = timeout
        self._watch: _Watch | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch; from here on Lightning's own observer, which kills without a word, has nothing to do."""
        folder = Path(trainer.log_dir or trainer.default_root_dir) / FOLDER  # agreed upon among the processes
        if trainer.world_size == 1:
            return
        children = list(getattr(trainer.strategy.launcher, "procs", []))
        _dismiss_observer()
        self._leave(well=True)
        name = trainer.strategy.broadcast(uuid.uuid4().hex[:8])
        self._watch = _Watch(folder, name, trainer.global_rank, self.timeout, children)
        self._watch.begin()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The others may go on without this rank."""
        self._leave(well=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Find out whether another rank's death is behind it.

        Raises:
            TimeoutError: None has died, but the ranks have lost each other.
        """
        if self._watch is None:  # too early: other ranks may be waiting, and nobody is going to tell them
            _dismiss_observer()
            for child in getattr(trainer.strategy.launcher, "procs", []):
                child.kill()
            return
        lost = _is_of_the_network(exception)
        if lost:
            self._watch.search()
        self._leave(well=isinstance(exception, SystemExit))
        if lost:
            raise TimeoutError(
                f"Rank {trainer.global_rank} has lost the others ({str(exception).splitlines()[0]}), though no process "
                "has died. Either the network failed, or a rank was busy for longer than the process group's time-out: "
                "pass a longer one (--trainer.strategy DDPStrategy --trainer.strategy.timeout 2:00:00). Continue with "
                "--ckpt_path auto."
            ) from exception

    def _leave(self, well: bool) -> None:
        if self._watch is not None:
            self._watch.end(well)
            self._watch = None


class _Watch(threading.Thread):
    """One rank's look at the others.

    Each keeps an empty file. It is removed by a rank that ends well, and renamed by one that ends with an error; only
    a rank that dies leaves it as it was.

    Args:
        folder: Of the files.
        name: What their names begin with, in this job alone.
        rank: Of this process.
        timeout: Seconds without a sign of life.
        children: Processes that this one has started: the ranks after it.
    """

    def __init__(
        self, folder: Path, name: str, rank: int, timeout: float, children: list[subprocess.Popen[bytes]]
    ) -> None:
        super().__init__(name="rank-watch", daemon=True)
        self._folder, self._name = folder, name
        self._rank = rank
        self._timeout = timeout
        self._children = children
        self._over = threading.Event()
        self._searching = False
        self._processes: list[Process] = []
        self._changed: dict[int, int] = {}  # modification times, as their folder's clock has them
        self._unchanged: dict[int, int] = {}

    def begin(self) -> None:
        """Show signs of life, and look for those of the others; to be called on all ranks."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(self._rank).touch()
        self._remove_old_files()
        self._processes = gathered(Process.this())  # when this returns, all files are there
        self.start()

    def search(self) -> None:
        """Something has happened: wait until the reason is found, which ends the process, or cannot be another rank."""
        self._searching = True
        self.join(_PATIENCE)
        if not all(process.is_near() for process in self._processes):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a new start must not wait for this process
            self.join(self._timeout * (1 + 2 / _LOOKS))

    def end(self, well: bool) -> None:
        """Stop, so that the others see whether this rank ended well."""
        self._over.set()
        with contextlib.suppress(OSError):
            if well:
                self._file(self._rank).unlink()
                self._folder.rmdir()  # the last one can
            else:
                self._file(self._rank).rename(self._file(self._rank, stopped=True))

    def run(self) -> None:
        """Look, until something has happened."""
        next_look = 0.0
        while not self._over.wait(_GLANCE):
            fates = {rank: fate for rank in self._others if (fate := self._fate_nearby(rank))}
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + self._timeout / _LOOKS
                fates = self._fates_by_files() | fates
            if fates and not self._over.is_set():
                self._end_process(fates)

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(len(self._processes)) if rank != self._rank]

    def _fate_nearby(self, rank: int) -> str:
        """What has become of a process on this machine; empty while it lives, or if it has ended well."""
        for child in self._children:
            child.poll()  # or what is left of it would stay
        is_dead = self._processes[rank].is_dead()
        if is_dead and self._file(rank).exists():
            return f"has died{self._cause(rank)}"
        return self._fate_told(rank) if is_dead or self._searching else ""

    def _fates_by_files(self) -> dict[int, str]:
        """What has become of processes anywhere."""
        fates = {}
        try:
            os.utime(self._file(self._rank))
        except OSError:  # the folder is away, for the others too
            return {}
        for rank in self._others:
            with contextlib.suppress(OSError):
                if told := self._fate_told(rank):
                    fates[rank] = told
                changed = self._file(rank).stat().st_mtime_ns
                same = changed == self._changed.get(rank)
                self._changed[rank] = changed
                self._unchanged[rank] = self._unchanged.get(rank, 0) + 1 if same else 0
                if self._unchanged[rank] >= _LOOKS:
                    fates[rank] = f"has shown no sign of life for {self._timeout:.0f} s"
        return fates

    def _fate_told(self, rank: int) -> str:
        return "has stopped with an error of its own" if self._file(rank, stopped=True).exists() else ""

    def _cause(self, rank: int) -> str:
        """How a process ended, where this one has started it."""
        child = next((child for child in self._children if child.pid == self._processes[rank].pid), None)
        if child is None:
            return ""
        try:
            status = child.wait(_PATIENCE)  # the last of its threads may be ending
        except subprocess.TimeoutExpired:
            return ""
        return f" ({signal.Signals(-status).name})" if status < 0 else f" (exit status {status})"

    def _end_process(self, fates: dict[int, str]) -> None:
        """Say what has happened, once in the whole job, and end this process whatever it is waiting for."""
        died = {rank: fate for rank, fate in fates.items() if self._file(rank).exists()}
        present = (r for r in range(len(self._processes)) if r not in died and self._was_there(r))
        speaks = min(present, default=self._rank) == self._rank
        self.end(well=False)  # before the message: whoever sees this one gone must find the reason
        if speaks:
            sys.stderr.write(f"lightning-paf: error: {self._message(died or fates)}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def _message(self, fates: dict[int, str]) -> str:
        number = len(self._processes)
        named = "; ".join(f"rank {rank} of {number} ({self._processes[rank]}) {fate}" for rank, fate in fates.items())
        return f"{named[0].upper()}{named[1:]}. The other ranks stop. Continue with --ckpt_path auto."

    def _was_there(self, rank: int) -> bool:
        return self._file(rank).exists() or self._file(rank, stopped=True).exists()

    def _file(self, rank: int, stopped: bool = False) -> Path:
        return self._folder / f"{self._name}-{rank}{'.stopped' if stopped else ''}"

    def _remove_old_files(self) -> None:
        """Those of jobs that have died; another job may be alive in the same folder."""
        now = self._file(self._rank).stat().st_mtime
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > _OLD:
                    path.unlink()


def _is_of_the_network(exception: BaseException) -> bool:
    """Whether a collective operation has failed; gloo has no exceptions of its own."""
    if isinstance(exception, distributed.DistError):
        return True
    return isinstance(exception, RuntimeError) and ("gloo" in str(exception) or "NCCL" in str(exception))


def _dismiss_observer() -> None:
    """Lightning's thread that watches the processes it has started kills this one without a reason, too."""
    threads: Iterable[Any] = threading.enumerate()
    for thread in threads:
        if thread.name == "child-process-observer":
            thread._child_processes = []
