"""Train a diffusion model and three classifiers on digits, and compare them."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.__main__ import main as main_command
from lightning_paf.recipes import located
from lightning_paf.utils.arguments import command_parser, positive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from lightning_paf.evaluation import EvaluationResult

GENERATOR_EPOCHS = 24
"""Epochs of the diffusion model, fewer than in its recipe, for time."""

SAMPLING_STEPS = 10
"""Steps of DDIM; more of them do not improve the images of so small a network."""

ATTACKS = 5
"""Sub-attacks of strong AutoAttack; each prints a line when it is done."""

NOTE = 48
"""Characters of a line that are shown next to the bars."""

EPOCH_DONE = re.compile(r"^epoch ")
ATTACK_DONE = re.compile(r", (apgd-ce|apgd-t|fab-t|square|smoothed-pgd): ")

ACTIVATIONS = {"ReLU": "relu", "SiLU": "silu", "PSSiLU": "pssilu"}
"""Names of the recipes and of the run folders, by class."""

ROWS = {
    "": "activation",
    "clean": "clean",
    "PGD-20": "pgd20",
    "AutoAttack": "autoattack",
    "strong": "strong",
    "alpha": "alpha",
    "beta": "beta",
    "train s": "train_seconds",
    "test s": "test_seconds",
}
"""Labels of the rows in the printed table, and their names in `summary.json`."""


@dataclass(frozen=True)
class Variant:
    """A trained network with its results; `autoattack` is of the strong version."""

    activation: str
    pgd: "EvaluationResult"
    autoattack: "EvaluationResult"
    parameters: dict[str, float]
    train_seconds: float
    test_seconds: float

    @property
    def robust(self) -> "dict[str, NDArray[np.bool_]]":
        """Whether each test image is robust, (n,), under standard and strong."""
        from lightning_paf.evaluation import Outcome

        standard = self.autoattack.robust_before("smoothed-pgd")
        return {"AutoAttack": standard, "strong": self.autoattack.outcomes == Outcome.ROBUST}

    def summary(self) -> dict[str, str]:
        """Cells of the table, by the names of `ROWS`."""
        from lightning_paf.evaluation import exact_accuracy

        robust = {ROWS[name]: exact_accuracy(int(of.sum()), len(of)) for name, of in self.robust.items()}
        alpha, beta = (self.parameters.get(name) for name in ("alpha", "beta"))
        return {
            "activation": self.activation,
            "clean": str(self.autoattack.clean),
            "pgd20": str(self.pgd.robust),
            **{name: str(accuracy) for name, accuracy in robust.items()},
            "alpha": "-" if alpha is None else f"{alpha:.3f}",
            "beta": "-" if beta is None else f"{beta:.2g}",
            "train_seconds": f"{self.train_seconds:.0f}",
            "test_seconds": f"{self.test_seconds:.0f}",
        }


def main(argv: list[str]) -> int:
    """Run the demonstration."""
    parser = command_parser("demo", __doc__)
    parser.add_argument("--config", default="demo/digits", help="recipe or file of the classifiers")
    parser.add_argument("--generator", default="diffusion/digits", help="recipe or file of the diffusion model")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder; numbered where it exists")
    parser.add_argument("--count", type=positive, default=10_000, help="number of synthetic images")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, image order, attacks and pool")
    parser.add_argument("--epochs", type=positive, default=15, help="passes over the real images")
    options = parser.parse_args(argv)
    config, generator = str(located(options.config)), str(located(options.generator))
    folder = _free(options.out)
    pool, ddpm, seed = folder / "pool.npz", str(folder / "ddpm"), ["--seed_everything", str(options.seed)]
    _command("fit", "-c", generator, "--run", ddpm, *seed, "--trainer.max_epochs", str(GENERATOR_EPOCHS))
    numbers = ["--count", str(options.count), "--sampling_steps", str(SAMPLING_STEPS), "--seed", str(options.seed)]
    _command("synthesize", "--from", ddpm, *numbers, "--dataset", "digits", "--device", "cpu", "--out", str(pool))
    mixture, numbers = folder / "mixture.npz", ["--count", str(options.count), "--seed", str(options.seed)]
    _command("synthesize", *numbers, "--dataset", "digits", "--val_size", "200", "--out", str(mixture))
    runs = [folder / name for name in ACTIVATIONS.values()]
    common = ["--data.synthetic", str(pool), *seed, "--data.seed", str(options.seed)]
    common += ["--trainer.max_epochs", str(options.epochs)]
    trained = _in_parallel(runs, lambda run: _fit(config, run, common), EPOCH_DONE, options.epochs)
    evaluated = _in_parallel(runs, _test, ATTACK_DONE, ATTACKS)
    _show([_collect(*variant) for variant in zip(ACTIVATIONS, runs, trained, evaluated, strict=True)], folder)
    _show_distances(runs[0], {"diffusion model": pool, "Gaussian mixture": mixture})
    return 0


def _free(folder: Path) -> Path:
    """Return the first of `folder`, `folder-2`, ... that does not exist."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _fit(config: str, run: Path, common: list[str]) -> list[str]:
    """Return the words that train the activation that a run folder is named after."""
    return ["fit", "-c", config, "--model.activation", run.name, "--run", str(run), *common]


def _test(run: Path) -> list[str]:
    """Return the words that evaluate a run."""
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    return ["test", "--ckpt_path", checkpoint, "--data.eval_batch_size", "512", "--autoattack.attack.version", "strong"]


def _in_parallel(
    runs: list[Path], words_of: Callable[[Path], list[str]], done: re.Pattern[str], total: int
) -> list[float]:
    """Run a command for all runs, one process each; return the seconds of each.

    Args:
        runs: Run folders; each has a process, whose output is written to `RUN.COMMAND.log`.
        words_of: Command of a run.
        done: Pattern of the lines that are counted.
        total: Number of these lines.
    """
    from rich.progress import Progress

    started, running, seconds = time.perf_counter(), {}, dict.fromkeys(runs, 0.0)
    for run in runs:
        words = words_of(run)
        log = run.with_name(f"{run.name}.{words[0]}.log")
        print(f"\n$ lightning-paf {shlex.join(words)} > {log} 2>&1 &", flush=True)
        with log.open("w") as stream:
            command = [sys.executable, "-m", "lightning_paf", *words]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running[run] = log, subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    with Progress() as progress:
        bars = {run: progress.add_task(run.name, total=total) for run in runs}
        while running:
            time.sleep(0.5)
            for run, (log, process) in list(running.items()):
                lines = [line for line in log.read_text().splitlines() if done.search(line)]
                note = f"{run.name}: {lines[-1]}" if lines else f"{run.name}: starting"
                progress.update(bars[run], completed=len(lines), description=note[:NOTE])
                if process.poll() is not None:
                    del running[run]
                    seconds[run] = time.perf_counter() - started
                    _check_status(words_of(run)[0], process.returncode, str(log))
    return list(seconds.values())


def _collect(activation: str, run: Path, train_seconds: float, test_seconds: float) -> Variant:
    """Read the results of a run, and the magnitudes of the shared alpha and beta."""
    import torch

    from lightning_paf.evaluation import EvaluationResult

    results = {result.name: result for result in map(EvaluationResult.load, (run / "test").glob("*.json"))}
    weights = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    parameters = {
        key.rpartition(".")[2]: abs(float(value)) for key, value in weights.items() if key.endswith((".alpha", ".beta"))
    }
    return Variant(activation, results["pgd20"], results["autoattack"], parameters, train_seconds, test_seconds)


def _show_distances(run: Path, pools: dict[str, Path]) -> None:
    """Print the FID of pools, by the features of a trained classifier."""
    import torch

    from lightning_paf.analysis.base import outputs_of
    from lightning_paf.analysis.image_quality import image_quality
    from lightning_paf.data.sources import ImageSet, read_dataset, read_file
    from lightning_paf.loading import load_run

    loaded = load_run(run / "checkpoints" / "last.ckpt", device="cpu")
    data = loaded.datamodule

    def features(images: ImageSet) -> torch.Tensor:
        return outputs_of(loaded, torch.from_numpy(images.images).permute(0, 3, 1, 2)).features

    real = features(read_dataset(data.spec, data.root, download=False).train)
    drawn = {name: features(read_file(path, data.spec.channels)) for name, path in pools.items()}
    found = ", ".join(f"{name} {image_quality(images, real).fid:.2f}" for name, images in drawn.items())
    print(f"FID to the training images, by the features of {run.name}: {found}")


def _command(*words: str) -> None:
    """Print a command as a user would type it, and run it in this process."""
    print(f"\n$ lightning-paf {shlex.join(words)}", flush=True)
    _check_status(words[0], main_command(list(words)))


def _check_status(command: str, status: int, output: str = "its output above") -> None:
    if status:
        raise ValueError(f"`lightning-paf {command}` failed with exit status {status}. See {output}.")


def _show(variants: list[Variant], folder: Path) -> None:
    """Print the table and the paired differences, and write the table."""
    from rich.console import Console

    from lightning_paf.evaluation import paired_difference
    from lightning_paf.evaluation.comparison import order_note

    console = Console(highlight=False)
    console.print(_table(variants))
    reference, total = variants[0], variants[0].autoattack.evaluated
    for attack, variant in product(reference.robust, variants[1:]):
        ours, theirs = (of.robust[attack] for of in (variant, reference))
        difference = paired_difference(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), total)
        names = f"{variant.activation} minus {reference.activation}"
        console.print(f"{attack}, {names}, same {total} images: {difference}")
    orders = ({of.activation: float(of.robust[attack].mean()) for of in variants} for attack in reference.robust)
    console.print(order_note(*orders))
    console.print("Intervals: 95 %, over test images of one training run each; another seed changes the numbers, too.")
    content = [variant.summary() for variant in variants]
    (folder / "summary.json").write_text(json.dumps(content, indent=2) + "\n")
    files = "config.yaml, metrics.csv, checkpoints/last.ckpt, activation.png, test/"
    lines = [
        f"Run folder: {folder}",
        "  pool.npz, pool.png: synthetic images; mixture.*: those of a Gaussian mixture",
        "  ddpm/: samples.png, config.yaml, ...",
    ]
    lines += [f"  {name}/: {files}" for name in ACTIVATIONS.values()]
    console.print("\n".join(lines), soft_wrap=True)


def _table(variants: list[Variant]) -> "Table":
    """One column for each variant; at most 80 characters wide."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    first = variants[0].autoattack
    title = f"Digits 8x8, linf eps {first.attack['eps']}, {first.evaluated} test images"
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    header, *rows = [(label, *(variant.summary()[name] for variant in variants)) for label, name in ROWS.items()]
    for cell in header:
        table.add_column(cell)
    for row in rows:
        table.add_row(*row)
    return table
