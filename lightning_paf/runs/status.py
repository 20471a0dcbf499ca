"""Status of a run, read from the files in its folder, without importing torch."""

import math
import os
import re
import shlex
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_paf.runs.metrics_table import read_table
from lightning_paf.runs.progress import FILE, SILENCE, Progress, duration, folder_time
from lightning_paf.utils.files import explained, parse_json
from lightning_paf.utils.process import Process

Life = Literal["not started", "alive", "finished", "stopped", "failed", "dead", "imported", "unknown"]
IMPORTED = "imported.ckpt"
"""Checkpoint of a run that `import-weights` wrote."""

_CLAIM_SILENCE = 120.0
_LONG = 60.0
"""Seconds without a step that are reported."""
_RECORD = re.compile(r"block-\d+\.sub-attack-\d+\.record")
_DAMAGE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
"""Errors that a damaged file can raise."""


@dataclass(frozen=True)
class Best:
    """Best value of one metric, its epoch, from 1, and the clean accuracy with it."""

    metric: str
    value: float
    epoch: int
    clean: float | None


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file; `step` is None if unknown, `age` is in seconds."""

    path: Path
    step: int | None
    age: float


@dataclass(frozen=True)
class ResultFile:
    """Accuracies with their intervals (value, low, high) of one evaluation.

    `name` is that of the file without its suffix, since two evaluations can differ in any setting.
    """

    name: str
    threat: str
    robust: tuple[float, float, float]
    clean: tuple[float, float, float]
    evaluated: int
    total: int


@dataclass(frozen=True)
class UnfinishedEvaluation:
    """Records of an unfinished evaluation.

    Attributes:
        name: Name of the evaluation.
        records: Number of records.
        of: Number of records of the complete evaluation.
        silent: Seconds since the last record.
        workers: Live processes of the evaluation.
    """

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
        life: Whether the training runs; `imported` without a training, `unknown` without a `progress.json`.
        detail: Explanation of `life`.
        progress: Content of `progress.json`.
        seconds_left: Seconds until the end of a live training.
        step: Optimiser steps done; None if unknown.
        epoch: Epochs done.
        best: Best values of the validation metrics, robust accuracies first.
        activation: Last logged `alpha` and `beta`: smallest and largest over the activations.
        checkpoint: The last checkpoint.
        torn: Incomplete checkpoints.
        unreadable: Reasons why other files cannot be read.
        results: Results of `test`.
        unfinished: Unfinished evaluations of `test`.
        resume: Command that starts or resumes the training; empty if it is alive, finished or imported.
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
    unreadable: tuple[str, ...]
    results: tuple[ResultFile, ...]
    unfinished: tuple[UnfinishedEvaluation, ...]
    resume: str


def is_run(folder: Path) -> bool:
    """Return whether `fit` has created a folder."""
    return (folder / "config.yaml").is_file() or (folder / FILE).is_file() or (folder / "checkpoints").is_dir()


def runs_in(folder: Path) -> list[Path]:
    """Find the run folders in a folder, at any depth.

    For a run folder, the result is that folder only.

    Raises:
        ValueError: There is none.
    """
    if not folder.is_dir():
        raise ValueError(f"A run must be a folder, got {folder}. Pass a folder that was given to `fit --run`.")
    found = []
    with explained(folder, "a run folder"):
        for path, folders, _ in os.walk(folder):
            if is_run(Path(path)):
                found.append(Path(path))
                folders.clear()
            folders.sort()
    if not found:
        raise ValueError(
            f"A run folder must hold config.yaml, {FILE} or checkpoints, but there is none in {folder}. "
            "Pass a folder that was given to `fit --run`, or one with several of them."
        )
    return found


def read_run(run: Path) -> RunStatus:
    """Read the status of a run. No checkpoint is opened beyond its table of contents."""
    now, unreadable = folder_time(run), list[str]()
    rows = _rows(run / "metrics.csv", unreadable)
    progress = Progress.read(run / FILE)
    life, detail, left = _life(progress, bool(rows), _age(run / FILE, now))
    paths = [path for folder in (run, run / "checkpoints") for path in sorted(folder.glob("*.ckpt"))]
    complete, torn = _checked(paths, unreadable)
    if life == "not started" and paths:
        imported = {path.name for path in paths} == {IMPORTED}
        life, detail = ("imported", "") if imported else ("unknown", f"there is no valid {FILE}")
    epochs = [row for row in rows if "train/loss" in row]
    words = ["lightning-paf", "fit", "-c", run / "config.yaml", "--run", run, "--ckpt_path", "auto"]
    return RunStatus(
        run,
        life,
        detail,
        progress,
        left,
        progress.step if progress else max((int(row["step"]) + 1 for row in epochs), default=None if paths else 0),
        max([progress.epoch if progress else 0, *map(_epoch, epochs)]),
        tuple(_best(rows)),
        dict(_activation(rows)),
        _last_checkpoint(complete, progress, now),
        tuple(CheckpointFile(path, None, _age(path, now)) for path in torn),
        tuple(unreadable),
        tuple(_results(run / "test")),
        tuple(_unfinished(run / "test", now)),
        "" if life in ("alive", "finished", "imported") else shlex.join(map(str, words)),
    )


def _life(progress: Progress | None, began: bool, silent: float) -> tuple[Life, str, float | None]:
    """Return the state of a training, its explanation, and the seconds until its end."""
    if progress is None:
        return ("unknown", f"there is no valid {FILE}", None) if began else ("not started", "", None)
    if progress.state == "finished":
        return "finished", progress.error, None
    if progress.state == "stopped" or progress.state == "failed":
        return progress.state, progress.error, None
    process = progress.process
    if process.is_dead():
        return "dead", f"{process} no longer exists, last heartbeat {duration(silent)} ago", None
    if silent > SILENCE and not process.is_near():
        return "dead", f"last heartbeat of {process} {duration(silent)} ago", None
    idle, left = progress.idle + silent, progress.seconds_left
    detail = f"{progress.state}, {process}, heartbeat {duration(silent)} ago"
    if idle > max(_LONG, 10 * (progress.seconds_per_step or 0)):
        detail += f", no step for {duration(idle)}"
    return "alive", detail, None if left is None else max(0.0, left - idle)


def _rows(table: Path, unreadable: list[str]) -> list[dict[str, str]]:
    """Read the numbers of `metrics.csv`, without empty cells."""
    try:
        rows = read_table(table)[1] if table.exists() else []
    except (OSError, ValueError) as error:
        unreadable.append(str(error))
        return []
    return [{key: value for key, value in row.items() if key and _is_number(value)} for row in rows]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def _checked(paths: list[Path], unreadable: list[str]) -> tuple[list[Path], list[Path]]:
    """Separate complete checkpoints from truncated ones (no table of contents)."""
    found: tuple[list[Path], list[Path]] = [], []
    for path in paths:
        try:
            with path.open("rb") as stream:
                found[not zipfile.is_zipfile(stream)].append(path)
        except OSError as error:
            unreadable.append(f"{path.name} cannot be read ({error.strerror})")
    return found


def _epoch(row: Mapping[str, str]) -> int:
    """Return the number of a row's epoch, from 1."""
    return int(float(row.get("epoch", 0))) + 1


def _best(rows: list[dict[str, str]]) -> Iterator[Best]:
    metrics = {name for row in rows for name in row if name == "val/acc" or name.startswith("val/acc_")}
    for metric in sorted(metrics, key=lambda metric: (metric == "val/acc", metric)):
        row = max((row for row in rows if metric in row), key=lambda row: float(row[metric]))
        yield Best(metric, float(row[metric]), _epoch(row), float(row["val/acc"]) if "val/acc" in row else None)


def _activation(rows: list[dict[str, str]]) -> Iterator[tuple[str, tuple[float, float]]]:
    for parameter in ("alpha", "beta"):
        name = re.compile(rf"activation/(.*/)?{parameter}")
        logged = ([float(value) for key, value in row.items() if name.fullmatch(key)] for row in reversed(rows))
        if values := next(filter(None, logged), None):
            yield parameter, (min(values), max(values))


def _age(path: Path, now: float) -> float:
    """Return the seconds since the last change of a file; 0 if there is none."""
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return 0.0


def _last_checkpoint(complete: list[Path], progress: Progress | None, now: float) -> CheckpointFile | None:
    """Return the most recent file, with its step if `progress.json` names it."""
    last = min(complete, key=lambda path: _age(path, now), default=None)
    step = progress.checkpoint_step if progress and last and last.name == progress.checkpoint else None
    return CheckpointFile(last, step, _age(last, now)) if last else None


def _results(folder: Path) -> Iterator[ResultFile]:
    for path in sorted(folder.glob("*.json")):
        try:
            content = parse_json(path.read_text())
            attack, evaluated = content["attack"], content["robust"]["total"]
            threat = f"{attack['attack']} {attack['norm']} {attack['eps']}"
            robust, clean = content["robust"], content["clean"]
            interval = content.get("anytime") or robust  # valid although the stop depended on the outcomes
            if content.get("dataset", "unnamed") != "unnamed":
                threat += f", {content['dataset']}"
            if content.get("checkpoint"):
                threat += f", {content['checkpoint']['file']}"
            yield ResultFile(
                path.stem,
                threat,
                (float(robust["accuracy"]), float(interval["low"]), float(interval["high"])),
                (float(clean["accuracy"]), float(clean["low"]), float(clean["high"])),
                int(evaluated),
                int(content.get("total") or evaluated),
            )
        except _DAMAGE:  # another file
            continue


def _unfinished(folder: Path, now: float) -> Iterator[UnfinishedEvaluation]:
    for header in sorted(folder.glob("state/*/identity.json")):
        try:
            content = parse_json(header.read_text())
            of = math.ceil(content["samples"] / content["block_size"]) * (1 + len(content["sub_attacks"]))
        except _DAMAGE:
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
            owner = parse_json(claim.read_text())
            process = Process(**{name: owner[name] for name in ("host", "pid", "started", "system")})
            if not process.is_dead() and (process.is_near() or _age(claim, now) < _CLAIM_SILENCE):
                yield str(process)
        except _DAMAGE:
            continue
