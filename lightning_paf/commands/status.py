"""Tell where runs are: how far, how good, how fast, alive or dead, and how to continue."""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_paf.runs.status import RunStatus, VerdictFile


def main(argv: list[str]) -> int:
    """Print it.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status 0, whatever the runs do.

    Raises:
        ValueError: A folder holds no run.
    """
    options = _parse(argv)
    from lightning_paf.runs.status import read_run, runs_in

    found = [read_run(run) for place in options.runs for run in runs_in(place)]
    if options.json:
        print(json.dumps([asdict(status) for status in found], indent=2, default=str))
    elif len(found) == 1:
        _print_one(found[0])
    else:
        _print_table(found)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("lightning-paf status", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, or a folder with several")
    parser.add_argument("--json", action="store_true", help="print a list of JSON objects instead")
    return parser.parse_args(argv)


def _print_one(status: "RunStatus") -> None:
    print(f"{status.run}: {status.life}" + (f" ({status.detail})" if status.detail else ""))
    for label, text in _facts(status):
        print(f"  {label:11} {text}")


def _facts(status: "RunStatus") -> Iterator[tuple[str, str]]:
    """Label and text of every line but the first."""
    from lightning_paf.runs.progress import duration

    yield "progress", _position(status)
    if pace := _pace(status):
        yield "pace", pace
    if status.best:
        yield "best", "; ".join(f"{_label(b.metric)} {100 * b.value:.1f} % in epoch {b.epoch}" for b in status.best)
    if status.activation:
        yield "activation", ", ".join(f"{name} {_span(*ends)}" for name, ends in status.activation.items())
    if status.checkpoint:
        kept = status.checkpoint
        yield "checkpoint", f"{kept.path.name}: step {kept.step:,}, {duration(kept.age)} old"
    elif status.life != "not started":
        yield "checkpoint", "none"
    for torn in status.torn:
        yield "torn", f"{torn.path.name} is not whole and will be left out"
    for verdict in status.verdicts:
        yield "verdict", f"{verdict.name} ({verdict.threat}): {_accuracies(verdict)}"
    for ledger in status.ledgers:
        workers = f"at work: {', '.join(ledger.workers)}" if ledger.workers else "nobody at work"
        share = f"{ledger.records:,} of {ledger.of:,} records ({100 * ledger.records / ledger.of:.0f} %)"
        yield "judging", f"{ledger.name}: {share}, last {duration(ledger.silent)} ago, {workers}"
    if status.to_continue:
        yield ("start" if status.life == "not started" else "continue"), status.to_continue


def _print_table(found: "list[RunStatus]") -> None:
    from rich.console import Console
    from rich.table import Table

    from lightning_paf.runs.progress import duration

    table = Table("run", "state", "epoch", "done", "left", "robust", "clean", "activation", "checkpoint", "verdict")
    for status in found:
        best = {_label(best.metric): f"{100 * best.value:.1f} % @ {best.epoch}" for best in status.best}
        clean = best.pop("clean", "-")
        kept = status.checkpoint
        table.add_row(
            str(status.run),
            status.life,
            _epochs(status),
            _done(status),
            "-" if status.seconds_left is None else duration(status.seconds_left),
            "\n".join(f"{name.removeprefix('robust')} {value}" for name, value in best.items()) or "-",
            clean,
            "\n".join(f"{name} {_span(*ends)}" for name, ends in status.activation.items()) or "-",
            "-" if kept is None else f"{kept.step:,}, {duration(kept.age)} old",
            "\n".join(f"{v.name} {100 * v.robust[0]:.1f} %" for v in status.verdicts) or "-",
        )
    Console(highlight=False).print(table)


def _position(status: "RunStatus") -> str:
    """As in `epoch 3 of 15, step 1,200 of 6,000 (20.0 %)`."""
    steps = status.progress.steps if status.progress else None
    done = f" of {steps:,} ({_done(status)})" if steps else ""
    return f"epoch {_epochs(status).replace('/', ' of ')}, step {status.step:,}{done}"


def _epochs(status: "RunStatus") -> str:
    epochs = status.progress.epochs if status.progress else None
    return f"{status.epoch}/{epochs}" if epochs else str(status.epoch)


def _done(status: "RunStatus") -> str:
    steps = status.progress.steps if status.progress else None
    return f"{100 * status.step / steps:.1f} %" if steps else "-"


def _pace(status: "RunStatus") -> str:
    """As in `12,345 img/s, 3 min an epoch, 1 h 02 min left: until Sun 22 Nov 14:05`."""
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


def _accuracies(verdict: "VerdictFile") -> str:
    parts: Mapping[str, Any] = {"robust": verdict.robust, "clean": verdict.clean}
    texts = [f"{name} {100 * v:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" for name, (v, low, high) in parts.items()]
    of = f" of {verdict.total:,}" if verdict.total != verdict.judged else ""
    return f"{', '.join(texts)} on {verdict.judged:,}{of} samples"
