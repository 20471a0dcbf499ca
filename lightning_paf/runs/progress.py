"""How far a training is: the file in its run folder that says so, for those who look from outside."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lightning_paf.utils.process import Process

FILE = "progress.json"
BEAT = 10.0
"""Seconds between two signs of life of a training."""
SILENCE = 12 * BEAT
"""Seconds without a sign of life after which a training on another machine counts as dead; network folders may lag."""

State = Literal["training", "validating", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Progress:
    """Content of `progress.json`. The time of its last change is the last sign of life.

    Attributes:
        process: The first of the training's processes.
        state: What it did when it wrote this.
        step: Optimiser steps done.
        steps: In the whole training; None for one without an end.
        epoch: Epochs done.
        epochs: In the whole training; None where steps are counted.
        seconds_per_step: All in all, since this process has begun; None before its first step.
        images_per_second: In the last whole epoch, over all devices; None before its end.
        idle: Seconds since the last step when this was written: no two clocks are compared.
        error: What it failed with.
        saved: Whether the run has a checkpoint; None where this is not known.
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
    saved: bool | None = None

    @property
    def is_over(self) -> bool:
        """Whether the process has said that it ends."""
        return self.state in ("finished", "stopped", "failed")

    @property
    def seconds_left(self) -> float | None:
        """Estimate; None where it cannot be made."""
        return seconds_left(self.step, self.steps, self.seconds_per_step)

    def write(self, path: Path) -> None:
        """Write it whole. Nothing is forced to the disk: after a power failure the training is dead anyway."""
        begun = path.with_name(f"{path.name}.partial")
        begun.write_text(json.dumps(asdict(self), indent=2) + "\n")
        begun.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Progress | None":
        """What a training wrote; None where there is no such file."""
        try:
            content = json.loads(path.read_text())
            return cls(**content | {"process": Process(**content["process"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def folder_time(folder: Path) -> float:
    """The present moment by the clock of a folder, or of this machine where the folder cannot be written to."""
    clock = folder / f".{os.getpid()}.clock"
    try:
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink()
    except OSError:
        now = time.time()
    return now


def seconds_left(step: int, steps: int | None, seconds_per_step: float | None) -> float | None:
    """How long the rest of a training takes at its present pace; None where that is not known."""
    if steps is None or seconds_per_step is None:
        return None
    return max(0, steps - step) * seconds_per_step


def duration(seconds: float) -> str:
    """As in `45 s`, `3.2 s`, `12 min`, `1 h 02 min`, `3 d 04 h`."""
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
