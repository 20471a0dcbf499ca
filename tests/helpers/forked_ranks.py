"""Processes of one job."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.processes import leave, log_to, processes

SECONDS = 900  # far more than any job takes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """Runs `function(*args)` in `number` processes, as if Lightning had started them.

    Attributes:
        status: Exit status of each; negative for a signal.
        output: Output of each.
    """

    def __init__(self, number: int, folder: Path, function: Callable[..., None], *args: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._logs = [folder / f"rank{rank}.log" for rank in range(number)]
        port = free_port()
        self.processes = [
            processes().Process(target=_begin, args=(rank, number, port, log, function, args), daemon=True)
            for rank, log in enumerate(self._logs)
        ]
        for process in self.processes:
            process.start()

    @property
    def status(self) -> list[int | None]:
        return [process.exitcode for process in self.processes]

    @property
    def output(self) -> list[str]:
        return [log.read_text(errors="replace") if log.exists() else "" for log in self._logs]

    def __str__(self) -> str:
        return "\n".join(f"rank {i}: {self.status[i]}\n{text}" for i, text in enumerate(self.output))

    def wait(self) -> "Ranks":
        """Wait until all have ended."""
        end = time.monotonic() + SECONDS
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        if None in self.status:
            for process in self.processes:
                process.kill()
                process.join()
            pytest.fail(f"Hangs after {SECONDS} s:\n{self}", pytrace=False)
        return self

    def succeed(self) -> "Ranks":
        """Wait until all have ended with status 0."""
        self.wait()
        assert set(self.status) == {0}, str(self)
        return self


def _begin(rank: int, number: int, port: int, log: Path, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Entry point of the new process."""
    log_to(log)
    os.environ.update(
        {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(number), "GLOO_SOCKET_IFNAME": "lo"}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    )
    for name in [name for name in os.environ if name.startswith(("PL_", "PYTEST_"))]:
        del os.environ[name]
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    torch.set_num_threads(1)
    rank_zero_only.rank = rank  # set at the import, in a process without a rank
    status: Any = 1
    try:
        function(*args)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    leave(status)
