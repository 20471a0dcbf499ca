"""Train ReLU, SiLU and PSSiLU on digits and compare their robust accuracy."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.__main__ import main as main_command
from lightning_paf.recipes import located

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_paf.evaluation import EvaluationResult

ATTACKS = 4
"""Sub-attacks of standard AutoAttack; each prints a line when it is done."""

ATTACK_DONE = re.compile(r", (apgd-ce|apgd-t|fab-t|square): ")

ACTIVATIONS = {"ReLU": "relu", "SiLU": "silu", "PSSiLU": "pssilu"}


@dataclass(frozen=True)
class Variant:
    """A trained and evaluated network."""

    activation: str
    pgd: "EvaluationResult"
    autoattack: "EvaluationResult"
    parameters: dict[str, float]
    train_seconds: float
    test_seconds: float


def main(argv: list[str]) -> int:
    """Run the demonstration.

    Args:
        argv: Options, see `--help`.

    Raises:
        ValueError: There is no such configuration.
    """
    parser = argparse.ArgumentParser("lightning-paf demo", description=__doc__)
    parser.add_argument("--config", default="demo/digits", help="recipe or file of the experiment")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder; numbered where it exists")
    parser.add_argument("--count", type=int, default=10_000, help="synthetic images to make")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order of the images, attacks and the pool")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the real images")
    options = parser.parse_args(argv)
    config = located(options.config)
    folder = _free(options.out)
    pool = folder / "pool.npz"
    synthesize = ["--dataset", "digits", "--val_size", "200", "--count", str(options.count)]
    _command("synthesize", *synthesize, "--seed", str(options.seed), "--out", str(pool))
    common = ["--data.synthetic", str(pool), "--seed_everything", str(options.seed), "--data.seed", str(options.seed)]
    common += ["--trainer.max_epochs", str(options.epochs)]
    runs = [folder / file for file in ACTIVATIONS.values()]
    trained = [_train(run.name, config, run, common) for run in runs]
    seconds = _evaluate(runs)
    variants = [_collect(*of_one) for of_one in zip(ACTIVATIONS, runs, trained, seconds, strict=True)]
    _show(variants, folder)
    return 0


def _free(folder: Path) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, ... that does not exist."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _train(file: str, config: Path, run: Path, common: list[str]) -> float:
    """Train one activation; seconds."""
    started = time.perf_counter()
    activation = str(config.parent.parent / "activation" / f"{file}.yaml")
    _command("fit", "-c", str(config), "--model.activation", activation, "--run", str(run), *common)
    return time.perf_counter() - started


def _evaluate(runs: list[Path]) -> list[float]:
    """Evaluate all runs at the same time, one process each, with a progress bar; seconds of each."""
    from rich.progress import Progress

    started, waiting, seconds = time.perf_counter(), {}, dict.fromkeys(runs, 0.0)
    for run in runs:
        words = ["test", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--data.eval_batch_size", "512"]
        print(f"\n$ lightning-paf {shlex.join(words)} > {run}/test.log 2>&1 &", flush=True)
        with (run / "test.log").open("w") as log:
            command = [sys.executable, "-m", "lightning_paf", *words]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            waiting[run] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    with Progress() as progress:
        bars = {run: progress.add_task(run.name, total=ATTACKS) for run in runs}
        while waiting:
            time.sleep(0.5)
            for run, process in list(waiting.items()):
                lines = [line for line in (run / "test.log").read_text().splitlines() if ATTACK_DONE.search(line)]
                note = f"{run.name}: {lines[-1]}" if lines else f"{run.name}: starting"
                progress.update(bars[run], completed=len(lines), description=note)
                if process.poll() is not None:
                    del waiting[run]
                    seconds[run] = time.perf_counter() - started
                    _refuse_failure(f"test (see {run}/test.log)", process.returncode)
    return list(seconds.values())


def _collect(name: str, run: Path, train_seconds: float, test_seconds: float) -> Variant:
    """Read the results and parameters of a run."""
    from lightning_paf.evaluation import EvaluationResult

    results = {path.name.split("_")[0]: EvaluationResult.load(path) for path in (run / "test").glob("*_linf_*.json")}
    parameters = _learned(run / "checkpoints" / "last.ckpt")
    return Variant(name, results["pgd20"], results["autoattack"], parameters, train_seconds, test_seconds)


def _command(*words: str) -> None:
    """Run a command in this process, and show it as a user would type it."""
    print(f"\n$ lightning-paf {shlex.join(words)}", flush=True)
    _refuse_failure(words[0], main_command(list(words)))


def _refuse_failure(command: str, status: int) -> None:
    if status:
        raise ValueError(
            f"lightning-paf {command} must succeed, but ended with status {status}. See its message above."
        )


def _learned(checkpoint: Path) -> dict[str, float]:
    """Magnitudes of alpha and beta; the network shares one of each."""
    import torch

    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return {
        key.rpartition(".")[2]: abs(float(value)) for key, value in weights.items() if key.endswith((".alpha", ".beta"))
    }


def _show(variants: list[Variant], folder: Path) -> None:
    """Print the table and the paired differences, and write both."""
    from rich.console import Console

    from lightning_paf.evaluation import Outcome, paired_difference

    console = Console(highlight=False)
    console.print(_table(variants))
    reference, total = variants[0], variants[0].autoattack.evaluated
    for variant in variants[1:]:
        ours, theirs = (a.autoattack.outcomes == Outcome.ROBUST for a in (variant, reference))
        difference = paired_difference(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), total)
        console.print(
            f"AutoAttack, {variant.activation} minus {reference.activation}, same {total} images: {difference}"
        )
    console.print(
        "Intervals: 95 %, over test images of one training run each; another seed changes the numbers as well."
    )
    (folder / "summary.json").write_text(json.dumps([_row(variant) for variant in variants], indent=2) + "\n")
    console.print(f"Run folder: {folder}", soft_wrap=True)
    for file in ACTIVATIONS.values():
        console.print(
            f"  {file}/: config.yaml, metrics.csv, checkpoints/last.ckpt, activation.png, test/", soft_wrap=True
        )


def _table(variants: list[Variant]) -> "Table":
    """One column a variant, which fits 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    first = variants[0].autoattack
    table = Table(
        title=f"Digits 8x8, linf eps {first.attack['eps']}, {first.evaluated} test images",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
    columns = [_row(variant) for variant in variants]
    for header in ("", *(column["activation"] for column in columns)):
        table.add_column(header)
    rows = ("clean", "pgd20", "autoattack", "alpha", "beta", "train_seconds", "test_seconds")
    for key, label in zip(rows, ("clean", "PGD-20", "AutoAttack", "alpha", "beta", "train s", "test s"), strict=True):
        table.add_row(label, *(column[key] for column in columns))
    return table


def _row(variant: Variant) -> dict[str, str]:
    return {
        "activation": variant.activation,
        "clean": str(variant.autoattack.clean),
        "pgd20": str(variant.pgd.robust),
        "autoattack": str(variant.autoattack.robust),
        "alpha": f"{variant.parameters['alpha']:.3f}" if "alpha" in variant.parameters else "-",
        "beta": f"{variant.parameters['beta']:.2g}" if "beta" in variant.parameters else "-",
        "train_seconds": f"{variant.train_seconds:.0f}",
        "test_seconds": f"{variant.test_seconds:.0f}",
    }
