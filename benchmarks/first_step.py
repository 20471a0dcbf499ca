"""Time from the start of `fit` to the end of its first step, and number of later compilations.

    python benchmarks/first_step.py                                          # without compilation
    python benchmarks/first_step.py --compile --quick --net wrn10            # both, at a size for CPUs
    python benchmarks/first_step.py --device cuda --net wrn28_10 --compile

Every measurement is a separate process with empty compiler caches. It starts at `Trainer.fit`: it excludes imports and
the creation of images, and includes reading them, moving the network, and generating and compiling kernels. After the
first step (attack, pass without gradients for BatchNorm, update) follow more steps, a validation whose last batch is
smaller, and a second epoch, which must not compile anything.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import epoch
import measure
import ours
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

BATCHES = 3
"""Steps of each of the two epochs."""
LIMIT = 60.0
"""Seconds that a first step may take with compilation."""


class Progress(Callback):
    """Seconds at the end of every step, and numbers of graphs compiled so far, by phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = time.perf_counter()
        self.seconds: list[float] = []
        self.graphs: dict[str, int] = {}

    def note(self, phase: str) -> None:
        from torch._dynamo.utils import counters

        self.graphs[phase] = counters["stats"]["unique_graphs"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        measure.synchronize(self.device)
        self.seconds.append(time.perf_counter() - self.started)
        first = len(self.seconds) == 1
        self.note("first step" if first else "later steps" if trainer.current_epoch == 0 else "second epoch")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.note("validation")


class Reasons(logging.Handler):
    """Collects the reasons of recompilations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def child(options: argparse.Namespace) -> None:
    """Measure once in this process, and write the result to `--child`."""
    reasons = Reasons()
    torch._logging.set_logs(recompiles=True)
    recompiles = logging.getLogger("torch._dynamo.guards.__recompiles")
    recompiles.addHandler(reasons)
    device = ours.sizes(options)
    module = ours.module(options)
    with TemporaryDirectory() as folder:
        data = epoch.data_module(options, Path(folder), val_size=20, eval_batch_size=8)
        progress = Progress(device)
        trainer = epoch.trainer(options, max_epochs=2, callbacks=[progress], logger=False)
        progress.started = time.perf_counter()
        trainer.fit(module, data)
    found = {"seconds": progress.seconds, "graphs": progress.graphs, "recompiled": reasons.found}
    measure.write(options.child, found)


def measured(options: argparse.Namespace, compiled: bool) -> dict[str, Any]:
    """Measure once in a new process with empty caches."""
    with TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        arguments = [argument for argument in sys.argv[1:] if argument != "--compile"]
        arguments += ["--child", f"{folder}/found.json", *["--compile"] * compiled]
        command = [sys.executable, str(Path(__file__).resolve()), *arguments]
        done = subprocess.run(command, env=os.environ | caches, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"The measured process failed:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(Path(folder, "found.json").read_text())
    return found


def rows_of(name: str, runs: list[dict[str, Any]], cuda: bool) -> dict[str, dict[str, Any]]:
    """Rows of one variant."""
    firsts = [run["seconds"][0] for run in runs]
    later = [median(b - a for a, b in zip(run["seconds"][1:], run["seconds"][2:], strict=False)) for run in runs]
    under = {"median": "yes" if max(firsts) < LIMIT else "no", "target": "yes" if cuda and name == "compiled" else None}
    rows: dict[str, dict[str, Any]] = {
        f"first step / later step, {name}": measure.ratios(firsts, later),
        f"first step under {LIMIT:.0f} s, {name}": under,
    }
    before = 0
    for phase in ("first step", "later steps", "validation", "second epoch"):
        counts = [run["graphs"][phase] for run in runs]
        target = None if phase == "first step" else "0"
        rows[f"compilations, {phase}, {name}"] = measure.spread([n - before for n in counts]) | {"target": target}
        before = max(counts)
    if cuda:
        rows[f"first step, seconds, {name}"] = measure.spread(firsts) | {"target": f"< {LIMIT:.0f}"}
    return rows


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    ours.add_sizes(parser)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile and options.device == "cpu" and not options.quick:
        parser.error(
            "compiling a whole network for a CPU takes minutes; add --quick --net wrn10, or pass --device cuda"
        )
    options.batches, options.workers = BATCHES, 0
    if options.child:
        return child(options)
    ours.sizes(options)
    names = ["eager", *["compiled"] * options.compile]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.repeats):
        for name in names if number % 2 == 0 else names[::-1]:
            runs[name].append(measured(options, name == "compiled"))
    rows = {key: row for name in names for key, row in rows_of(name, runs[name], options.device == "cuda").items()}
    if options.compile:
        firsts = {name: [run["seconds"][0] for run in runs[name]] for name in names}
        rows["first step, compiled / eager"] = measure.ratios(firsts["compiled"], firsts["eager"])
    reasons = sorted({reason for repeats in runs.values() for run in repeats for reason in run["recompiled"]})
    measure.report(options, rows, recompiled=reasons)
    for reason in reasons:
        print(f"compiled again: {reason}")
    return None


if __name__ == "__main__":
    main()
