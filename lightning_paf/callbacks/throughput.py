"""Throughput of a training, and its use of time and memory."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Token
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_paf.attacks.base import call_context
from lightning_paf.runs.progress import seconds_left
from lightning_paf.types import Batch

PREFIX = "run/"
"""Prefix of measured values, which differ between two otherwise equal runs."""

Activity = Literal["attack", "step", "data", "validation"]
_PENDING = 256
"""Number of recent intervals kept unread, since reading would wait for the device."""
_GIB = 2**30


class Throughput(Callback):
    """Speed, time and memory of a training, logged once per epoch.

    The values are in a separate row. `run/images_per_second` is the number of training images of all devices, divided
    by the time spent in training steps and waiting for their data. `run/attack`, `run/update`, `run/data` and
    `run/validation` are fractions of the epoch's time `run/seconds`: the attack; the rest of the step (outer pass,
    optimiser, callbacks); the time from the end of a step until the next batch is augmented on the device; validation.
    The remainder is spent on checkpoints and logging. `run/peak_gpu_gib` is the maximum memory of tensors on a GPU in
    the epoch; on a CPU, `run/peak_rss_gib` is that of the main process since its start. With several ranks, times are
    means and memory is the maximum.

    GPU times are measured with events in the device's queue and read much later, without synchronisation. A resumed
    epoch is measured from its resumption.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        """The values that were logged last."""
        self.steps: int | None = None
        """Optimiser steps of the training; None for one without an end."""
        self._clock = _HostClock()
        self._started = (0.0, 0)  # time and step at the start of this process
        self._open = deque[tuple[Activity, Any, Any]]()
        self._left: Any = None  # end of the last step, if only the next batch is waited for
        self._entered: Any = None
        self._token: Token[Any] | None = None  # of the attack timer, within a step
        self._start_epoch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start measuring, possibly in the middle of an epoch."""
        steps = trainer.estimated_stepping_batches
        self.steps = None if steps == float("inf") else int(steps)
        self._started = (time.perf_counter(), trainer.global_step)
        self._clock = _clock_of(pl_module.device)
        self.latest = {}
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset; the first wait for data includes the start of the loader's processes."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._start_epoch()
        self._left = self._clock.now()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """End the wait for data, and start timing attacks."""
        self._entered = self._clock.now()
        if self._left is not None:
            self._count("data", self._left, self._entered)
        self._token = call_context.set(self._attacking)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the step, and stop timing attacks."""
        self._stop_attack_timer()
        self._left = self._clock.now()
        self._count("step", self._entered, self._left)
        self._images += len(batch[0])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a validation, and stop timing the wait for data."""
        self._left, self._entered = None, self._clock.now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validation."""
        if not trainer.sanity_checking:
            self._count("validation", self._entered, self._clock.now())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do not count the checkpoint as waiting for data."""
        self._left = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the epoch and the ranks, and log."""
        while self._open:
            self._read_oldest()
        if not self._images:  # resumed at its end
            return
        wall = time.perf_counter() - self._since
        mine = torch.tensor([*self._spent.values(), wall, float(self._images)], device=pl_module.device)
        sums = trainer.strategy.reduce(mine, reduce_op="sum")
        attack, step, data, validation, wall, images = (float(value) for value in sums)
        spent = {"attack": attack, "update": step - attack, "data": data, "validation": validation}
        values = {
            "images_per_second": images / (step + data) * trainer.world_size,
            **{activity: seconds / wall for activity, seconds in spent.items()},
            "seconds": wall / trainer.world_size,
            **_peak_memory(trainer, pl_module.device),
        }
        self.latest = {f"{PREFIX}{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            # Not through `log`, whose rows must be the same in every run.
            logger.log_metrics({**self.latest, "epoch": trainer.current_epoch}, trainer.global_step - 1)

    def seconds_per_step(self, step: int) -> float | None:
        """Return the mean time per step of this process; None before its first step."""
        started, first = self._started
        return (time.perf_counter() - started) / (step - first) if step > first else None

    def seconds_left(self, step: int) -> float | None:
        """Estimate the time from `step` to the end of the training; None if unknown."""
        return seconds_left(step, self.steps, self.seconds_per_step(step))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop timing attacks after a failed step."""
        self._stop_attack_timer()

    def _stop_attack_timer(self) -> None:
        if self._token is not None:
            call_context.reset(self._token)
            self._token = None

    @contextmanager
    def _attacking(self) -> Iterator[None]:
        begin = self._clock.now()
        yield
        self._count("attack", begin, self._clock.now())

    def _start_epoch(self) -> None:
        self._open.clear()
        self._spent: dict[Activity, float] = {"attack": 0.0, "step": 0.0, "data": 0.0, "validation": 0.0}
        self._images = 0
        self._since = time.perf_counter()

    def _count(self, activity: Activity, begin: Any, end: Any) -> None:
        self._open.append((activity, begin, end))
        if len(self._open) > _PENDING:
            self._read_oldest()

    def _read_oldest(self) -> None:
        activity, begin, end = self._open.popleft()
        self._spent[activity] += self._clock.between(begin, end)


class _HostClock:
    """Clock of the host, for devices that compute synchronously."""

    def now(self) -> Any:
        return time.perf_counter()

    def between(self, begin: Any, end: Any) -> float:
        seconds: float = end - begin
        return seconds


class _CUDAClock(_HostClock):
    """Clock of CUDA events in the device's queue.

    Reading an event waits until the device has reached it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1000


def _clock_of(device: torch.device) -> _HostClock:
    return _CUDAClock(device) if device.type == "cuda" else _HostClock()


def _peak_memory(trainer: Trainer, device: torch.device) -> dict[str, float]:
    """Return the maximum peak memory over ranks, in GiB; nothing if unknown."""
    if device.type == "cuda":
        name, mine = "peak_gpu_gib", torch.cuda.max_memory_allocated(device) / _GIB
    elif sys.platform == "win32":
        return {}
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        name, mine = "peak_rss_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB
    return {name: float(trainer.strategy.reduce(torch.tensor(mine, device=device), reduce_op="max"))}
