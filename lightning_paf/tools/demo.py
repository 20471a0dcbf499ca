"""Train ReLU, SiLU and PSSiLU on digits with synthetic data, judge them by AutoAttack, print one table."""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_paf.evaluation import EvaluationResult

ACTIVATIONS = {"ReLU": "relu", "SiLU": "silu", "PSSiLU": "pssilu"}


@dataclass(frozen=True)
class Arm:
    """One trained and judged network."""

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
    """
    parser = argparse.ArgumentParser("lightning-paf demo", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/demo/digits.yaml"), help="the experiment")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="run folder; a number is added if it exists"
    )
    parser.add_argument("--count", type=int, default=10_000, help="synthetic images to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, help="after --: options of fit, e.g. --trainer.max_epochs 2"
    )
    options = parser.parse_args(argv)
    if not options.config.is_file():
        raise ValueError(
            f"The demo needs {options.config}, which does not exist. Run it from a clone, or pass --config."
        )
    folder = _free(options.out)
    pool = _synthesize(folder, options.count, options.seed)
    overrides = [word for word in options.overrides if word != "--"]
    common = ["--data.synthetic", str(pool), "--seed_everything", str(options.seed), *overrides]
    arms = [_run(name, file, options.config, folder, common) for name, file in ACTIVATIONS.items()]
    _show(arms, folder)
    return 0


def _free(folder: Path) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, ... that does not exist."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _synthesize(folder: Path, count: int, seed: int) -> Path:
    from lightning_paf.tools import synthesize

    pool = folder / "pool.npz"
    synthesize.main(["--dataset", "digits", "--count", str(count), "--seed", str(seed), "--out", str(pool)])
    return pool


def _run(name: str, file: str, config: Path, folder: Path, common: list[str]) -> Arm:
    """Train and judge one activation."""
    from lightning_paf.cli import train
    from lightning_paf.evaluation import EvaluationResult

    print(f"\n== {name}: training ==", flush=True)
    run = folder / file
    started = time.perf_counter()
    activation = str(config.parent.parent / "activation" / f"{file}.yaml")
    train(["fit", "-c", str(config), "--model.activation", activation, "--run", str(run), *common])
    trained = time.perf_counter()
    print(f"\n== {name}: PGD-20 and standard AutoAttack on the whole test split ==", flush=True)
    cli = train(["test", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    judged = time.perf_counter()
    results = {path.name.split("_")[0]: EvaluationResult.load(path) for path in (run / "test").glob("*_linf_*.json")}
    learned = {
        parameter: abs(float(value))
        for parameter, value in cli.model.named_parameters()
        if parameter.endswith((".alpha", ".beta"))
    }
    short = {key.rsplit(".", 1)[1]: value for key, value in learned.items()}
    return Arm(name, results["pgd20"], results["autoattack"], short, trained - started, judged - trained)


def _show(arms: list[Arm], folder: Path) -> None:
    """Print the table and the paired differences, and write both."""
    from rich.console import Console

    from lightning_paf.evaluation import Verdict, paired_difference

    console = Console()
    console.print(_table(arms))
    first = arms[0]
    total = first.autoattack.judged
    for arm in arms[1:]:
        ours, theirs = (a.autoattack.verdicts == Verdict.ROBUST for a in (arm, first))
        difference = paired_difference(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), total)
        console.print(
            f"AutoAttack, {arm.activation} minus {first.activation}, same {total} images: {difference}", highlight=False
        )
    console.print("Intervals: 95 %, over test images of one training run each; another seed moves the numbers too.")
    summary = folder / "summary.json"
    summary.write_text(json.dumps([_row(arm) for arm in arms], indent=2) + "\n")
    console.print(
        f"Run folder: {folder} (config.yaml, metrics.csv, checkpoints/, activation.png in each run; {summary.name})"
    )


def _table(arms: list[Arm]) -> "Table":
    from rich.table import Table

    eps = arms[0].autoattack.attack["eps"]
    table = Table("activation", "clean %", "PGD-20 %", "AutoAttack %", "alpha", "beta", "train s", "judge s")
    table.title = f"Digits 8x8, linf eps {eps}, {arms[0].autoattack.judged} test images"
    for arm in arms:
        table.add_row(*(str(cell) for cell in _row(arm).values()))
    return table


def _row(arm: Arm) -> dict[str, str]:
    return {
        "activation": arm.activation,
        "clean": str(arm.autoattack.clean),
        "pgd20": str(arm.pgd.robust),
        "autoattack": str(arm.autoattack.robust),
        "alpha": f"{arm.parameters['alpha']:.3f}" if "alpha" in arm.parameters else "-",
        "beta": f"{arm.parameters['beta']:.2g}" if "beta" in arm.parameters else "-",
        "train_seconds": f"{arm.train_seconds:.0f}",
        "test_seconds": f"{arm.test_seconds:.0f}",
    }
