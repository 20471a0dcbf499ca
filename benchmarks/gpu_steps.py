"""Steps of benchmarks/gpu.py: programs under a time limit, with a result file each and a table at the end."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure

from lightning_paf.utils.files import write_whole
from lightning_paf.utils.process import EXIT_STATUS

ROOT = Path(__file__).resolve().parents[1]
GRACE = 30
"""Seconds from the time limit of a step to its end by force; a training saves a checkpoint in them."""


class UnfinishedError(Exception):
    """A step that reached its time limit."""


class FailedError(Exception):
    """A step whose program failed."""


@dataclass(frozen=True)
class Job:
    """Settings of all steps.

    Attributes:
        device: `cuda`, or `cpu` for a rehearsal.
        data: Folder of CIFAR-10, or None.
        pool: File of further training images, or None.
        out: Folder of the results.
        work: Folder of logs, runs and other files that are needed to resume.
        limit: Seconds of one step.
        minutes: Length of one training.
    """

    device: str
    data: Path | None
    pool: Path | None
    out: Path
    work: Path
    limit: float
    minutes: float

    @property
    def cuda(self) -> bool:
        """Whether the sizes are full."""
        return self.device == "cuda"

    def result(self, name: str) -> Path:
        """Return the result file of a step."""
        return self.out / f"{name}.json"

    def is_done(self, name: str) -> bool:
        """Return whether a step has a result without failures."""
        file = self.result(name)
        return file.is_file() and not json.loads(file.read_text()).get("failed")

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a result with a description of the machine."""
        import torch

        content = {"machine": measure.machine(torch.device(self.device)), **content}
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.result(name), (json.dumps(content, indent=1) + "\n").encode())

    def python(self, name: str, *words: object, **environment: str) -> int:
        """Run `python WORDS` under the time limit, copy its output to the log of the step, and return its status."""
        command = [sys.executable, *map(str, words)]
        log = self.work / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, **environment}
        print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with (
            log.open("a") as stream,
            subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **options) as process,
            _limited(process, self.limit) as reached,
        ):
            for line in process.stdout:
                print(line, end="", flush=True, file=stream)
                print(f"  {line}", end="", flush=True)
            status = process.wait()
        if status == EXIT_STATUS or (status and reached.is_set()):
            raise UnfinishedError
        return status

    def check(self, name: str, *words: object, **environment: str) -> None:
        """Run `python WORDS`, which must succeed."""
        status = self.python(name, *words, **environment)
        if status:
            raise FailedError(f"exit status {status}; see {self.work / 'logs' / name}.log")


class _limited:
    """Ends a process and its children at a time limit, and at an exception."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self.process, self.reached = process, threading.Event()
        self.timers = [threading.Timer(seconds, self._stop), threading.Timer(seconds + GRACE, self._kill)]

    def __enter__(self) -> threading.Event:
        for timer in self.timers:
            timer.daemon = True
            timer.start()
        return self.reached

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.timers[0].cancel()
        if kind is not None:  # Ctrl-C reaches only this process
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._kill()
        self.timers[1].cancel()

    def _stop(self) -> None:
        self.reached.set()
        self.process.terminate()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Step:
    """A step with its requirements.

    Attributes:
        name: Name of the result file.
        run: Makes the result file.
        packages: Modules that it needs.
        after: Earlier steps that it needs.
        data: Whether it needs CIFAR-10.
    """

    name: str
    run: Callable[[Job], None]
    packages: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    data: bool = False

    def obstacle(self, job: Job) -> str:
        """Return the reason to skip the step; empty if there is none."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        undone = [name for name in self.after if not job.is_done(name)]
        if missing:
            return f"needs the package {' and '.join(missing)}"
        if self.data and job.data is None:
            return "needs CIFAR-10: pass --data DIR (make gpu DATA=DIR)"
        return f"needs the step {' and '.join(undone)}" if undone else ""

    def attempt(self, job: Job) -> tuple[str, str]:
        """Run the step unless it is done or lacks a requirement; return its state and a remark."""
        if job.is_done(self.name):
            return "done", f"before; delete {shown(job.result(self.name))} to repeat it"
        if reason := self.obstacle(job):
            return "skipped", reason
        print(f"\n== {self.name}", flush=True)
        try:
            self.run(job)
        except UnfinishedError:
            return "unfinished", f"stopped after {job.limit:.0f} s; repeat the command"
        except FailedError as error:
            return "failed", str(error)
        except Exception as error:  # the other steps still run
            traceback.print_exc()
            return "failed", f"{type(error).__name__}: {error}"
        return "done", ""


@dataclass
class Report:
    """States of the steps."""

    rows: list[tuple[str, str, float, str]] = field(default_factory=list)

    def run(self, steps: Sequence[Step], job: Job) -> None:
        for number, step in enumerate(steps):
            started = time.perf_counter()
            try:
                state, remark = step.attempt(job)
            except KeyboardInterrupt:
                self.rows += [(other.name, "unfinished", 0.0, "interrupted") for other in steps[number:]]
                return
            self.rows.append((step.name, state, time.perf_counter() - started, remark))

    def print(self, out: Path) -> int:
        """Print a table, and return the exit status."""
        print(f"\nResults: {shown(out)}")
        for name, state, seconds, remark in self.rows:
            print(f"{name:20}  {state:10}  {seconds:5.0f} s  {remark}".rstrip())
        states = [state for _, state, _, _ in self.rows]
        print(", ".join(f"{states.count(s)} {s}" for s in ("done", "skipped", "unfinished", "failed") if s in states))
        return 1 if "failed" in states else EXIT_STATUS if "unfinished" in states else 0


def shown(path: Path) -> Path:
    """Return a path relative to the current folder, if it is in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
