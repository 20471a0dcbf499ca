"""Processes that start in milliseconds, forked by a server that has imported everything."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]


@cache
def processes() -> Any:
    """Return the multiprocessing context; the first call starts the server of the session."""
    context = multiprocessing.get_context("forkserver")
    known = os.environ.get("PYTHONPATH", "")  # changed only for the server, which imports modules of tests
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_TESTS), str(_TESTS.parent), known])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context.set_forkserver_preload(["lightning_paf.evaluation.evaluate", "helpers.ddp_worker"])
    forkserver.ensure_running()
    os.environ["PYTHONPATH"] = known
    return context


def started(work: Callable[..., Any], *arguments: Any, log: Path) -> Any:
    """Start a process that calls `work`; its output is appended to `log`."""
    process = processes().Process(target=_logged, args=(log, work, *arguments))
    process.start()
    return process


def log_to(log: Path) -> None:
    """Append all further output of this process to `log`."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def leave(status: int) -> None:
    """End this process without Python's clean-up, in which gloo sometimes aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _logged(log: Path, work: Callable[..., Any], *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    log_to(log)
    result = work(*arguments)
    leave(result if isinstance(result, int) else 0)
