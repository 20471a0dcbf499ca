"""Progress of a training, written to `progress.json` in its run folder."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from lightning_paf.utils.files import parse_json
from lightning_paf.utils.process import Process

FILE = "progress.json"
BEAT = 10.0
"""Seconds between two heartbeats of a training."""
SILENCE = 12 * BEAT
"""Seconds without a heartbeat until a training on another machine counts as dead."""
_MOST = 1e15
"""Upper bound of all numbers; a damaged file can hold infinity."""

State = Literal["training", "validating", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Progress:
    """Content of `progress.json`; its modification time is the last heartbeat.

    Attributes:
        process: First process of the training.
        state: Current state, or how the training ended.
        step: Optimiser steps done.
        steps: Optimiser steps in total; None for a training without an end.
        epoch: Epochs done.
        epochs: Epochs in total; None if the length is given in steps.
        seconds_per_step: Mean over this process; None before its first step.
        images_per_second: In the last complete epoch, over all devices; None before its end.
        idle: Seconds since the last step, at the time of writing.
        error: Exception that ended the training, or the reason of an early end.
        checkpoint: Name of the last saved checkpoint; empty before the first, None if unknown.
        checkpoint_step: Optimiser steps before that checkpoint.
    """

    process: Process
    state: State
    step: int
    steps: int | None
    epoch: int
    epochs: int | None
    seconds_per_step: float | None = None
    images_per_second: float | None = None
    idle: float = 0.0
    error: str = ""
    checkpoint: str | None = None
    checkpoint_step: int | None = None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time until the end; None if unknown."""
        return seconds_left(self.step, self.steps, self.seconds_per_step)

    def write(self, path: Path) -> None:
        """Write the file atomically, without flushing it.

        After a power failure it is of no use, since the training has ended.
        """
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Progress | None":
        """Read a file of any version; None if it is missing or damaged."""
        try:
            content = parse_json(path.read_text())
            known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
            progress = cls(**known | {"process": Process(**content["process"])})
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return None
        return progress if progress._is_valid() else None

    def _is_valid(self) -> bool:
        optional = (self.steps, self.epochs, self.seconds_per_step, self.images_per_second, self.checkpoint_step)
        numbers = (self.step, self.epoch, self.idle, *(number for number in optional if number is not None))
        return (
            self.state in get_args(State)
            and all(isinstance(number, int | float) and abs(number) < _MOST for number in numbers)
            and isinstance(self.error, str)
            and isinstance(self.checkpoint, str | None)
        )


def folder_time(folder: Path) -> float:
    """Return the time by the clock of a folder; the local time if it is read-only."""
    clock = folder / f".{os.getpid()}.clock"
    try:
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink()
    except OSError:
        now = time.time()
    return now


def seconds_left(step: int, steps: int | None, seconds_per_step: float | None) -> float | None:
    """Estimate the time until the end of a training; None if unknown."""
    if steps is None or seconds_per_step is None:
        return None
    return max(0, steps - step) * seconds_per_step


def duration(seconds: float) -> str:
    """Format a duration, as in `45 s`, `3.2 s`, `12 min`, `1 h 02 min`, `3 d 04 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02} h"
