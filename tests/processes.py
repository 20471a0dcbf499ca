"""Processes that start in milliseconds and are processes all the same: their server has loaded torch."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["lightning_paf.cli", "lightning_paf.evaluation.verdict", "cli_runs"])


def started(work: Callable[..., Any], *arguments: Any, log: Path) -> multiprocessing.Process:
    """Another process that does `work`; what it says is appended to `log`."""
    process = PROCESSES.Process(target=_logged, args=(log, work, *arguments))
    process.start()
    return process


def _logged(log: Path, work: Callable[..., Any], *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    result = work(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(result if isinstance(result, int) else 0)
