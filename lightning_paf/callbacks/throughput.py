"""Throughput of a training, and its use of time and memory."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Token
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_paf.attacks.base import call_context
from lightning_paf.runs.progress import seconds_left
from lightning_paf.types import Batch

PREFIX = "run/"
"""Prefix of all measured values, which differ between two runs that are equal otherwise."""

Occupation = Literal["attack", "step", "data", "validation"]
_PENDING = 256
"""Number of intervals that a device may not have finished yet; reading older ones does not wait."""
_GIB = 2**30


class Clock(Protocol):
    """Marks moments, and measures the time between them."""

    def now(self) -> Any:
        """Mark this moment."""

    def between(self, begin: Any, end: Any) -> float:
        """Return the seconds between two marks."""


class Throughput(Callback):
    """Logs speed, time and memory once per epoch, in a separate row.

    `run/images_per_second` counts the training images of all devices over the time spent in training steps and in
    waiting for their data. `run/attack`, `run/update`, `run/data` and `run/validation` are shares of the epoch's time
    (`run/seconds`): in the attack; in the rest of the step, which is the outer pass, the optimiser and the callbacks;
    from the end of a step until the next batch lies augmented on the device; in validation. What they leave out of 1
    went into checkpoints and logging. `run/peak_gpu_gib` is the most memory that tensors took on a GPU in
    the epoch; without one, `run/peak_rss_gib` is the most that the main process has ever taken. Several ranks log
    the mean of their times and the maximum of their memory.

    On a GPU, times are those of its own clock between marks in its queue of work, which the program reads long after:
    it never waits. An epoch that is resumed in its middle counts from there.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        """The values that were logged last."""
        self.steps: int | None = None
        """Optimiser steps in the whole training; None for one without an end."""
        self._clock: Clock = _HostClock()
        self._started = (0.0, 0)  # time and step of this process
        self._open = deque[tuple[Occupation, Any, Any]]()
        self._left: Any = None  # end of the last step, where nothing but the next batch is waited for
        self._entered: Any = None
        self._watch: Token[Any] | None = None  # of the attacks, within a step
        self._start_epoch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start, perhaps in the middle of an epoch."""
        steps = trainer.estimated_stepping_batches
        self.steps = None if steps == float("inf") else int(steps)
        self._started = (time.perf_counter(), trainer.global_step)
        self._clock = _clock_of(pl_module.device)
        self.latest = {}
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from zero; the first wait for data includes the start of the loader's processes."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._start_epoch()
        self._left = self._clock.now()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """End the wait for data, and measure the attack."""
        self._entered = self._clock.now()
        if self._left is not None:
            self._count("data", self._left, self._entered)
        self._watch = call_context.set(self._attacking)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the step, stop timing attacks."""
        self._stop_watch()
        self._left = self._clock.now()
        self._count("step", self._entered, self._left)
        self._images += len(batch[0])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a validation; the time until the next step is no wait for data."""
        self._left, self._entered = None, self._clock.now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the validation."""
        if not trainer.sanity_checking:
            self._count("validation", self._entered, self._clock.now())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do not count the checkpoint as a wait for data."""
        self._left = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the epoch and the ranks, and log."""
        while self._open:
            self._settle()
        if not self._images:  # resumed at its end
            return
        wall = time.perf_counter() - self._since
        seconds = [self._spent[what] for what in ("attack", "step", "data", "validation")]
        mine = torch.tensor([*seconds, wall, float(self._images)], device=pl_module.device)
        sums = trainer.strategy.reduce(mine, reduce_op="sum")
        attack, step, data, validation, wall, images = (float(value) for value in sums)
        shares = {"attack": attack, "update": step - attack, "data": data, "validation": validation}
        values = {
            "images_per_second": images / (step + data) * trainer.world_size,
            **{what: spent / wall for what, spent in shares.items()},
            "seconds": wall / trainer.world_size,
            **_peak_memory(trainer, pl_module.device),
        }
        self.latest = {f"{PREFIX}{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            # Not by `log`, whose row has to be the same in every run.
            logger.log_metrics({**self.latest, "epoch": trainer.current_epoch}, trainer.global_step - 1)

    def seconds_per_step(self, step: int) -> float | None:
        """Return the mean time per step of this process, everything included; None before its first step.

        Args:
            step: Optimiser steps done.
        """
        started, first = self._started
        return (time.perf_counter() - started) / (step - first) if step > first else None

    def seconds_left(self, step: int) -> float | None:
        """Estimate the time until the end of the training; None if unknown.

        Args:
            step: Optimiser steps done.
        """
        return seconds_left(step, self.steps, self.seconds_per_step(step))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop timing attacks after a failed step."""
        self._stop_watch()

    def _stop_watch(self) -> None:
        if self._watch is not None:
            call_context.reset(self._watch)
            self._watch = None

    @contextmanager
    def _attacking(self) -> Iterator[None]:
        begin = self._clock.now()
        yield
        self._count("attack", begin, self._clock.now())

    def _start_epoch(self) -> None:
        self._open.clear()
        self._spent: dict[Occupation, float] = {"attack": 0.0, "step": 0.0, "data": 0.0, "validation": 0.0}
        self._images = 0
        self._since = time.perf_counter()

    def _count(self, what: Occupation, begin: Any, end: Any) -> None:
        self._open.append((what, begin, end))
        if len(self._open) > _PENDING:
            self._settle()

    def _settle(self) -> None:
        what, begin, end = self._open.popleft()
        self._spent[what] += self._clock.between(begin, end)


class _HostClock:
    """Clock of the host, for devices that compute synchronously."""

    def now(self) -> float:
        return time.perf_counter()

    def between(self, begin: float, end: float) -> float:
        return end - begin


class _CUDAClock:
    """Marks in the device's queue of work. Reading them waits until the device has come that far."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> torch.cuda.Event:
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self.device))
        return mark

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1000


def _clock_of(device: torch.device) -> Clock:
    return _CUDAClock(device) if device.type == "cuda" else _HostClock()


def _peak_memory(trainer: Trainer, device: torch.device) -> dict[str, float]:
    """Return the peak memory in GiB, the maximum over ranks; nothing if unknown."""
    if device.type == "cuda":
        name, mine = "peak_gpu_gib", torch.cuda.max_memory_allocated(device) / _GIB
    elif sys.platform == "win32":
        return {}
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        name, mine = "peak_rss_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB
    return {name: float(trainer.strategy.reduce(torch.tensor(mine, device=device), reduce_op="max"))}
