"""What the files of a run folder say about the run, read without torch and so in a moment."""

import csv
import json
import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from lightning_paf.runs.progress import FILE, SILENCE, Progress, duration, folder_time
from lightning_paf.utils.process import Process

Life = Literal["not started", "alive", "finished", "stopped", "failed", "dead", "unknown"]

_LEASE_SILENCE = 120.0
_LONG = 60.0
"""Seconds without a step that are worth telling."""
_RECORD = re.compile(r"block-\d+\.sub-attack-\d+\.record")
_LARGEST_SKELETON = 2**26


@dataclass(frozen=True)
class Best:
    """The best value of one metric, and the epoch that it was reached in, from 1."""

    metric: str
    value: float
    epoch: int


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint as its file's table of contents shows it; the step is None where the file is torn."""

    path: Path
    step: int | None
    age: float


@dataclass(frozen=True)
class VerdictFile:
    """Accuracies with their intervals (value, low, high) of one evaluation of `test`."""

    name: str
    threat: str
    robust: tuple[float, float, float]
    clean: tuple[float, float, float]
    judged: int
    total: int


@dataclass(frozen=True)
class LedgerState:
    """How far an evaluation has come that is not finished; `workers` are those known or thought to be alive."""

    name: str
    records: int
    of: int
    silent: float
    workers: tuple[str, ...]


@dataclass(frozen=True)
class RunStatus:
    """All that is known of one run.

    Attributes:
        run: Its folder.
        life: Whether the training is at work; `unknown` where it has left no `progress.json`.
        detail: Of `life`, for people.
        progress: Of the training.
        seconds_left: Until its end, if it is alive.
        step: Optimiser steps done, also where there is no `progress`.
        epoch: Epochs done, too.
        best: Best values of what validations measured, robust accuracies first.
        activation: Last logged `alpha` and `beta`: smallest and largest over the activations.
        checkpoint: That with the most steps.
        torn: Checkpoints that are not whole.
        verdicts: What `test` found.
        ledgers: What `test` has begun.
        to_continue: The command that continues a training that is not alive, nor finished.
    """

    run: Path
    life: Life
    detail: str
    progress: Progress | None
    seconds_left: float | None
    step: int
    epoch: int
    best: tuple[Best, ...]
    activation: Mapping[str, tuple[float, float]]
    checkpoint: CheckpointFile | None
    torn: tuple[CheckpointFile, ...]
    verdicts: tuple[VerdictFile, ...]
    ledgers: tuple[LedgerState, ...]
    to_continue: str


def is_run(folder: Path) -> bool:
    """Whether `fit` has made a folder."""
    return (folder / "config.yaml").is_file() or (folder / FILE).is_file() or (folder / "checkpoints").is_dir()


def runs_in(place: Path) -> list[Path]:
    """A run, or all those directly in a folder.

    Raises:
        ValueError: There is none.
    """
    if not place.is_dir():
        raise ValueError(f"A run is a folder, but {place} is none. Pass what was given to `fit --run`.")
    found = [place] if is_run(place) else sorted(child for child in place.iterdir() if is_run(child))
    if not found:
        raise ValueError(
            f"A run folder holds config.yaml, {FILE} or checkpoints, but neither {place} nor a folder in it does. "
            "Pass what was given to `fit --run`."
        )
    return found


def read_run(run: Path) -> RunStatus:
    """Read all that a run has written. Nothing in a checkpoint is executed."""
    now, rows = folder_time(run), _rows(run / "metrics.csv")
    progress = Progress.read(run / FILE)
    life, detail, left = _life(progress, bool(rows), _age(run / FILE, now))
    paths = [path for folder in (run, run / "checkpoints") for path in sorted(folder.glob("*.ckpt"))]
    checkpoints = [_checkpoint(path, now) for path in paths]
    whole = [checkpoint for checkpoint in checkpoints if checkpoint.step is not None]
    if life == "not started" and checkpoints:
        life, detail = "unknown", f"it has left no {FILE}"
    again = f"lightning-paf fit -c {run / 'config.yaml'} --run {run} --ckpt_path auto"
    return RunStatus(
        run,
        life,
        detail,
        progress,
        left,
        max([progress.step if progress else 0, *(int(row["step"]) + 1 for row in rows)]),
        max([progress.epoch if progress else 0, *(_epoch(row) for row in rows if "train/loss" in row)]),
        _best(rows),
        _activation(rows),
        max(whole, key=lambda checkpoint: (checkpoint.step or 0, -checkpoint.age), default=None),
        tuple(checkpoint for checkpoint in checkpoints if checkpoint.step is None),
        tuple(_verdicts(run / "test")),
        tuple(_ledgers(run / "test", now)),
        "" if life in ("alive", "finished") else again,
    )


def _life(progress: Progress | None, began: bool, silent: float) -> tuple[Life, str, float | None]:
    """What the training does, more about it, and the seconds that it still needs."""
    if progress is None:
        return ("unknown", f"it has left no {FILE}", None) if began else ("not started", "", None)
    if progress.state == "finished":
        return "finished", "", None
    if progress.state == "stopped" or progress.state == "failed":
        return progress.state, progress.error, None
    process = progress.process
    if process.is_dead():
        return "dead", f"{process} is gone, last sign of life {duration(silent)} ago", None
    if silent > SILENCE and not process.is_near():
        return "dead", f"{process} is out of sight, and its last sign of life {duration(silent)} old", None
    idle, left = progress.idle + silent, progress.seconds_left
    detail = f"{progress.state}, {process}, sign of life {duration(silent)} ago"
    if idle > max(_LONG, 10 * (progress.seconds_per_step or 0)):
        detail += f", no step for {duration(idle)}"
    return "alive", detail, None if left is None else max(0.0, left - idle)


def _rows(table: Path) -> list[dict[str, str]]:
    """Of `metrics.csv`, each without its empty cells; the last may be half a line, and is left out then."""
    try:
        with table.open(newline="") as stream:
            found = csv.DictReader(line for line in stream if line.endswith("\n"))
            return [{key: value for key, value in row.items() if value} for row in found if row.get("step")]
    except OSError:
        return []


def _epoch(row: Mapping[str, str]) -> int:
    """Number of a row's epoch, from 1."""
    return int(float(row.get("epoch", 0))) + 1


def _best(rows: list[dict[str, str]]) -> tuple[Best, ...]:
    best: dict[str, Best] = {}
    for row in rows:
        for metric in (key for key in row if key == "val/acc" or key.startswith("val/acc_")):
            value = float(row[metric])
            if metric not in best or value > best[metric].value:
                best[metric] = Best(metric, value, _epoch(row))
    return tuple(best[metric] for metric in sorted(best, key=lambda metric: (metric == "val/acc", metric)))


def _activation(rows: list[dict[str, str]]) -> dict[str, tuple[float, float]]:
    found = {}
    for parameter in ("alpha", "beta"):
        name = re.compile(rf"activation/(.*/)?{parameter}")
        for row in reversed(rows):
            values = [float(value) for key, value in row.items() if name.fullmatch(key)]
            if values:
                found[parameter] = (min(values), max(values))
                break
    return found


def _age(path: Path, now: float) -> float:
    """Seconds since the last change of a file; 0 where there is none."""
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return 0.0


def _checkpoint(path: Path, now: float) -> CheckpointFile:
    """A truncated file has lost its table of contents, which is at its end."""
    age = _age(path, now)
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            if name.file_size > _LARGEST_SKELETON:
                return CheckpointFile(path, None, age)
            with archive.open(name) as stream:
                return CheckpointFile(path, int(_Skeleton(stream).load()["global_step"]), age)
    except Exception:  # a damaged file fails in any way it likes
        return CheckpointFile(path, None, age)


class _Nothing:
    """Stands for every object in a checkpoint that is no plain value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Skeleton(pickle.Unpickler):
    """Reads plain values, and puts nothing in the place of tensors and of whatever else there is; runs no code."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)

    def find_class(self, module: str, name: str) -> Any:
        """Nothing, whatever the file names."""
        return _Nothing

    def persistent_load(self, pid: Any) -> Any:
        """A storage: not read."""
        return None


def _verdicts(folder: Path) -> Iterator[VerdictFile]:
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
            attack, judged = content["attack"], content["robust"]["total"]
            threat = f"{attack['attack']} {attack['norm']} {attack['eps']}"
            robust, clean = (
                (part["accuracy"], part["low"], part["high"]) for part in (content["robust"], content["clean"])
            )
            if content.get("anytime"):  # its interval stays valid although the end depended on what was seen
                robust = (robust[0], content["anytime"]["low"], content["anytime"]["high"])
            if content.get("checkpoint"):
                threat += f", {content['checkpoint']['file']}"
            yield VerdictFile(content["name"], threat, robust, clean, judged, content.get("total") or judged)
        except (OSError, ValueError, KeyError, TypeError):  # another file
            continue


def _interval(part: Mapping[str, float]) -> tuple[float, float, float]:
    return part["accuracy"], part["low"], part["high"]


def _ledgers(folder: Path, now: float) -> Iterator[LedgerState]:
    for header in sorted(folder.glob("state/*/identity.json")):
        try:
            content = json.loads(header.read_text())
            of = math.ceil(content["samples"] / content["block_size"]) * (1 + len(content["sub_attacks"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        records = [path for path in header.parent.iterdir() if _RECORD.fullmatch(path.name)]
        newest = max([*records, header], key=lambda path: path.stat().st_mtime)
        name = header.parent.name.rpartition("-")[0]
        results = (path.stat().st_mtime for path in folder.glob(f"{name}*.json"))
        if len(records) < of and not any(written >= newest.stat().st_mtime for written in results):
            yield LedgerState(name, len(records), of, _age(newest, now), tuple(_workers(header.parent, now)))


def _workers(ledger: Path, now: float) -> Iterator[str]:
    for lease in sorted(ledger.glob("block-*.claim")):
        try:
            holder = json.loads(lease.read_text())
            process = Process(**{name: holder[name] for name in ("host", "pid", "started", "system")})
            if not process.is_dead() and (process.is_near() or _age(lease, now) < _LEASE_SILENCE):
                yield str(process)
        except (OSError, ValueError, KeyError, TypeError):
            continue
