"""Speed and remaining time of long work."""

import math
import os
import time
from datetime import timedelta
from typing import Self


class Meter:
    """Report of processed images, images a second and the time left.

    It is written to standard error. Only the first rank of torchrun reports.

    Args:
        task: Description of the work.
        total: Number of images.
    """

    def __init__(self, task: str, total: int) -> None:
        from rich.console import Console

        self._task = task
        self._total = total
        self._console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")
        self._status = self._console.status(task)
        self._first: tuple[int, float] | None = None
        self._due = 0.0

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def update(self, done: int) -> None:
        """Report the number of processed images; without a terminal, once a minute."""
        now, text = time.monotonic(), f"{self._task}: {done:,} of {self._total:,}"
        first, started = self._first = self._first or (done, now)
        if done > first:
            speed = (done - first) / (now - started)
            text += f", {speed:,.0f} a second, {timedelta(seconds=round((self._total - done) / speed))} left"
        self._status.update(text)
        ended = done == self._total
        if self._due < math.inf and (ended or (now >= self._due and not self._console.is_terminal)):
            self._console.print(text)
            self._due = math.inf if ended else now + 60
