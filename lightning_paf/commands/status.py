"""Report the progress, accuracies and state of runs, and how to resume them."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.utils.arguments import command_parser
from lightning_paf.utils.files import csv_text
from lightning_paf.utils.terminal import printable

if TYPE_CHECKING:
    from lightning_paf.runs.status import ResultFile, RunStatus

_COLUMNS = "robust: best in validation; clean: in the same epoch; result: robust in test"
_NAME_WIDTH = 24


def main(argv: list[str]) -> int:
    """Print the status of runs; return 0 for any status."""
    parser = command_parser("status", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, or a folder with runs in it")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a list of JSON objects instead")
    form.add_argument("--csv", action="store_true", help="print a table as CSV instead")
    options = parser.parse_args(argv)
    from lightning_paf.runs.status import read_run, runs_in

    found = [read_run(run) for folder in options.runs for run in runs_in(folder)]
    if options.json:
        print(json.dumps([asdict(status) for status in found], indent=2, default=str))
    elif options.csv:
        print(csv_text([_row(status) for status in found]), end="")
    elif len(found) == 1:
        _print_one(found[0])
    else:
        _print_table(found)
    return 0


def _row(status: "RunStatus") -> dict[str, Any]:
    """Values of a CSV table; accuracies are in [0, 1]."""
    row: dict[str, Any] = {"run": status.run, "state": status.life, "epoch": status.epoch, "step": status.step}
    row |= {"seconds_left": status.seconds_left} | {f"best {best.metric}": best.value for best in status.best}
    for result in status.results:
        for name, (value, low, high) in (("clean", result.clean), ("robust", result.robust)):
            key = f"{result.name} {name}"
            row |= {key: value, f"{key} low": low, f"{key} high": high}
    return row


def _print_one(status: "RunStatus") -> None:
    print(printable(f"{status.run}: {status.life}" + (f" ({status.detail})" if status.detail else "")))
    for label, text in _facts(status):
        print(printable(f"  {label:11} {text}"))


def _facts(status: "RunStatus") -> Iterator[tuple[str, str]]:
    """Yield label and text of every line but the first."""
    from lightning_paf.runs.progress import duration

    if status.life != "imported":
        yield "progress", _position(status)
    if pace := _pace(status):
        yield "pace", pace
    if status.best:
        yield "best", "; ".join(f"{_label(b.metric)} {100 * b.value:.1f} % in epoch {b.epoch}" for b in status.best)
    if status.activation:
        yield "activation", ", ".join(f"{name} {_span(*ends)}" for name, ends in status.activation.items())
    if status.checkpoint:
        step = "" if status.life == "imported" else f"step {_number(status.checkpoint.step)}, "
        yield "checkpoint", f"{status.checkpoint.path.name}: {step}{duration(status.checkpoint.age)} old"
    elif status.life != "not started":
        yield "checkpoint", "none"
    for torn in status.torn:
        yield "torn", f"{torn.path.name} is incomplete and will be ignored"
    for reason in status.unreadable:
        yield "unreadable", reason
    for result in status.results:
        yield "result", f"{result.name} ({result.threat}): {_accuracies(result)}"
    for part in status.unfinished:
        workers = f"running: {', '.join(part.workers)}" if part.workers else "no process is running"
        done = f"{part.records:,} of {part.of:,} records ({100 * part.records / part.of:.0f} %)"
        yield "unfinished", f"{part.name}: {done}, last {duration(part.silent)} ago, {workers}"
    if status.resume:
        yield ("start" if status.life == "not started" else "resume"), status.resume


def _print_table(found: "list[RunStatus]") -> None:
    """Print a table with one row for each run, at most 80 columns wide."""
    from rich.console import Console
    from rich.table import Table

    from lightning_paf.runs.progress import duration

    parent = Path(os.path.commonpath([status.run for status in found]))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("run", "state", "epoch", "left", "robust", "clean", "result"):
        table.add_column(title, no_wrap=title not in ("run", "result"), overflow="fold")
    files = {result.name for status in found for result in status.results}
    short = len({name.partition("_")[2] for name in files}) == 1
    for status in found:
        name = printable(os.path.relpath(status.run, parent))
        best = [b for b in status.best if b.metric != "val/acc"]
        table.add_row(
            name if len(name) <= _NAME_WIDTH else "…" + name[1 - _NAME_WIDTH :],
            status.life,
            _epochs(status),
            "-" if status.seconds_left is None else duration(status.seconds_left),
            "\n".join(_percent(b.value) for b in best) or "-",
            "\n".join(_percent(b.clean) for b in best or status.best) or "-",
            "\n".join(_named(result, short) for result in status.results) or "-",
        )
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"Runs in {printable(parent)}\n{_COLUMNS}")
    console.print(table)


def _named(result: "ResultFile", short: bool) -> str:
    """Format as `71.7 % pgd20_linf_8-255`; `short` omits the threat model."""
    name = result.name.partition("_")[0] if short else result.name
    return f"{_percent(result.robust[0])} {printable(name)}"


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.1f} %"


def _position(status: "RunStatus") -> str:
    """Format as `epoch 3 of 15, step 1,200 of 6,000 (20.0 %)`."""
    steps = status.progress.steps if status.progress and not _ended_early(status) else None
    done = f" of {steps:,} ({100 * (status.step or 0) / steps:.1f} %)" if steps else ""
    return f"epoch {_epochs(status).replace('/', ' of ')}, step {_number(status.step)}{done}"


def _number(step: int | None) -> str:
    return "unknown" if step is None else f"{step:,}"


def _ended_early(status: "RunStatus") -> bool:
    return status.life == "finished" and bool(status.detail)


def _epochs(status: "RunStatus") -> str:
    epochs = status.progress.epochs if status.progress and not _ended_early(status) else None
    return f"{status.epoch}/{epochs}" if epochs else str(status.epoch)


def _pace(status: "RunStatus") -> str:
    """Format as `12,345 img/s, 3 min an epoch, 2 min left: until Sun 22 Nov 14:05`."""
    from lightning_paf.runs.progress import duration

    progress = status.progress
    if progress is None or progress.seconds_per_step is None:
        return ""
    parts = [f"{progress.images_per_second:,.0f} img/s"] if progress.images_per_second else []
    if progress.steps and progress.epochs:
        parts.append(f"{duration(progress.seconds_per_step * progress.steps / progress.epochs)} an epoch")
    if status.seconds_left is not None:
        end = time.strftime("%a %d %b %H:%M", time.localtime(time.time() + status.seconds_left))
        parts.append(f"{duration(status.seconds_left)} left: until {end}")
    return ", ".join(parts)


def _label(metric: str) -> str:
    return "clean" if metric == "val/acc" else f"robust({metric.removeprefix('val/acc_')})"


def _span(low: float, high: float) -> str:
    return "..".join(dict.fromkeys((f"{low:.3g}", f"{high:.3g}")))


def _accuracies(result: "ResultFile") -> str:
    parts = {"robust": result.robust, "clean": result.clean}
    texts = [f"{name} {100 * v:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" for name, (v, low, high) in parts.items()]
    of = f" of {result.total:,}" if result.total != result.evaluated else ""
    return f"{', '.join(texts)} on {result.evaluated:,}{of} samples"
