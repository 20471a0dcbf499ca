"""Status of a run, read from the files in its folder without torch."""

import contextlib
import csv
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_paf.runs.progress import FILE, SILENCE, Progress, duration, folder_time
from lightning_paf.utils.process import Process

Life = Literal["not started", "alive", "finished", "stopped", "failed", "dead", "unknown"]

_CLAIM_SILENCE = 120.0
_LONG = 60.0
"""Seconds without a step that are reported."""
_RECORD = re.compile(r"block-\d+\.sub-attack-\d+\.record")


@dataclass(frozen=True)
class Best:
    """Best value of one metric, and its epoch, from 1."""

    metric: str
    value: float
    epoch: int


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file; `step` is None if unknown, `age` is in seconds."""

    path: Path
    step: int | None
    age: float


@dataclass(frozen=True)
class ResultFile:
    """Accuracies with their intervals (value, low, high) of one evaluation."""

    name: str
    threat: str
    robust: tuple[float, float, float]
    clean: tuple[float, float, float]
    evaluated: int
    total: int


@dataclass(frozen=True)
class UnfinishedEvaluation:
    """Records of an unfinished evaluation; `workers` are its live processes, `silent` the age of the last record."""

    name: str
    records: int
    of: int
    silent: float
    workers: tuple[str, ...]


@dataclass(frozen=True)
class RunStatus:
    """Status of one run.

    Attributes:
        run: Run folder.
        life: Whether the training runs; `unknown` without a `progress.json`.
        detail: Explanation of `life`.
        progress: Content of `progress.json`.
        seconds_left: Seconds until the end of a live training.
        step: Optimiser steps done; from the metrics if there is no `progress`, None if unknown.
        epoch: Epochs done.
        best: Best values of the validation metrics, robust accuracies first.
        activation: Last logged `alpha` and `beta`: smallest and largest over the activations.
        checkpoint: The last checkpoint.
        torn: Checkpoints that are not complete.
        results: Results of `test`.
        unfinished: Unfinished evaluations of `test`.
        resume: Command that starts or resumes the training; empty if it is alive or finished.
    """

    run: Path
    life: Life
    detail: str
    progress: Progress | None
    seconds_left: float | None
    step: int | None
    epoch: int
    best: tuple[Best, ...]
    activation: Mapping[str, tuple[float, float]]
    checkpoint: CheckpointFile | None
    torn: tuple[CheckpointFile, ...]
    results: tuple[ResultFile, ...]
    unfinished: tuple[UnfinishedEvaluation, ...]
    resume: str


def is_run(folder: Path) -> bool:
    """Return whether `fit` has created a folder."""
    return (folder / "config.yaml").is_file() or (folder / FILE).is_file() or (folder / "checkpoints").is_dir()


def runs_in(place: Path) -> list[Path]:
    """Find the run folders in a folder, at any depth; a run folder itself is the only one.

    Raises:
        ValueError: There is none.
    """
    if not place.is_dir():
        raise ValueError(f"A run must be a folder, got {place}. Pass a folder that was given to `fit --run`.")
    found = list(_runs_below(place))
    if not found:
        raise ValueError(
            f"A run folder must hold config.yaml, {FILE} or checkpoints, but there is none in {place}. "
            "Pass a folder that was given to `fit --run`, or one with several of them."
        )
    return found


def read_run(run: Path) -> RunStatus:
    """Read the status of a run. No checkpoint is opened beyond its table of contents."""
    now, rows = folder_time(run), _rows(run / "metrics.csv")
    progress = Progress.read(run / FILE)
    life, detail, left = _life(progress, bool(rows), _age(run / FILE, now))
    paths = [path for folder in (run, run / "checkpoints") for path in sorted(folder.glob("*.ckpt"))]
    complete = [path for path in paths if _is_complete(path)]
    if life == "not started" and paths:
        life, detail = "unknown", f"there is no {FILE}"
    epochs = [row for row in rows if "train/loss" in row]
    command = f"lightning-paf fit -c {run / 'config.yaml'} --run {run} --ckpt_path auto"
    return RunStatus(
        run,
        life,
        detail,
        progress,
        left,
        progress.step if progress else max((int(row["step"]) + 1 for row in epochs), default=None if paths else 0),
        max([progress.epoch if progress else 0, *map(_epoch, epochs)]),
        _best(rows),
        _activation(rows),
        _last_checkpoint(complete, progress, now),
        tuple(CheckpointFile(path, None, _age(path, now)) for path in paths if path not in complete),
        tuple(_results(run / "test")),
        tuple(_unfinished(run / "test", now)),
        "" if life in ("alive", "finished") else command,
    )


def _runs_below(folder: Path) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    with contextlib.suppress(OSError):  # not readable
        for child in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
            yield from _runs_below(child)


def _life(progress: Progress | None, began: bool, silent: float) -> tuple[Life, str, float | None]:
    """Return the state of a training, its explanation, and the seconds until its end."""
    if progress is None:
        return ("unknown", f"there is no {FILE}", None) if began else ("not started", "", None)
    if progress.state == "finished":
        return "finished", "", None
    if progress.state == "stopped" or progress.state == "failed":
        return progress.state, progress.error, None
    process = progress.process
    if process.is_dead():
        return "dead", f"{process} is gone, last heartbeat {duration(silent)} ago", None
    if silent > SILENCE and not process.is_near():
        return "dead", f"last heartbeat of {process} {duration(silent)} ago", None
    idle, left = progress.idle + silent, progress.seconds_left
    detail = f"{progress.state}, {process}, heartbeat {duration(silent)} ago"
    if idle > max(_LONG, 10 * (progress.seconds_per_step or 0)):
        detail += f", no step for {duration(idle)}"
    return "alive", detail, None if left is None else max(0.0, left - idle)


def _rows(table: Path) -> list[dict[str, str]]:
    """Read `metrics.csv` without empty cells and without a half-written last line."""
    try:
        with table.open(newline="") as stream:
            found = csv.DictReader(line for line in stream if line.endswith("\n"))
            return [{key: value for key, value in row.items() if value} for row in found if row.get("step")]
    except OSError:
        return []


def _epoch(row: Mapping[str, str]) -> int:
    """Return the number of a row's epoch, from 1."""
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
    """Return the seconds since the last change of a file; 0 if there is none."""
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return 0.0


def _is_complete(path: Path) -> bool:
    """Return whether a checkpoint has its table of contents, which a truncated file has lost."""
    try:
        return zipfile.is_zipfile(path)
    except OSError:
        return False


def _last_checkpoint(complete: list[Path], progress: Progress | None, now: float) -> CheckpointFile | None:
    """Return the checkpoint that `progress.json` names, otherwise the youngest file."""
    last = min(complete, key=lambda path: _age(path, now), default=None)
    named = next((path for path in complete if progress and path.name == progress.checkpoint), last)
    step = progress.checkpoint_step if progress and named and named.name == progress.checkpoint else None
    return CheckpointFile(named, step, _age(named, now)) if named else None


def _results(folder: Path) -> Iterator[ResultFile]:
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
            attack, evaluated = content["attack"], content["robust"]["total"]
            threat = f"{attack['attack']} {attack['norm']} {attack['eps']}"
            robust, clean = (
                (part["accuracy"], part["low"], part["high"]) for part in (content["robust"], content["clean"])
            )
            if content.get("anytime"):  # this interval is valid although the stop depended on the outcomes
                robust = (robust[0], content["anytime"]["low"], content["anytime"]["high"])
            if content.get("checkpoint"):
                threat += f", {content['checkpoint']['file']}"
            yield ResultFile(content["name"], threat, robust, clean, evaluated, content.get("total") or evaluated)
        except (OSError, ValueError, KeyError, TypeError):  # another file
            continue


def _unfinished(folder: Path, now: float) -> Iterator[UnfinishedEvaluation]:
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
            yield UnfinishedEvaluation(name, len(records), of, _age(newest, now), tuple(_workers(header.parent, now)))


def _workers(state: Path, now: float) -> Iterator[str]:
    for claim in sorted(state.glob("block-*.claim")):
        try:
            owner = json.loads(claim.read_text())
            process = Process(**{name: owner[name] for name in ("host", "pid", "started", "system")})
            if not process.is_dead() and (process.is_near() or _age(claim, now) < _CLAIM_SILENCE):
                yield str(process)
        except (OSError, ValueError, KeyError, TypeError):
            continue
