"""Test the claims of a paper: train its method and baselines, and evaluate them."""

import argparse
import json
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.experiments import experiment_names, find_experiment
from lightning_paf.recipes import located
from lightning_paf.utils.arguments import command_parser, number, positive

if TYPE_CHECKING:
    from lightning_paf.experiments.experiment import Experiment
    from lightning_paf.experiments.run import Task
    from lightning_paf.speed.search_precision import SearchPrecision

BUDGETS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "cpu": (3, 100, ()),
    "smoke": (2, 16, ("--trainer.max_epochs", "1")),
}
"""Seeds, evaluated test images, and last options of `fit`, by budget."""
_DATA = ("data.root", "data.synthetic")
"""Options that are passed to `fit`."""


def main(argv: list[str]) -> int:
    """Run an experiment, or list all; return 1 if a training failed, else 0."""
    options = _parse(argv)
    if options.list:
        _list()
        return 0
    if options.table:
        from lightning_paf.experiments.page import page

        print(page(options.table))
        return 0
    if options.method is None:
        names = ", ".join(experiment_names())
        raise ValueError(f"METHOD must be one of {names}, got none. Pass --list for descriptions.")
    experiment, folder = _chosen(find_experiment(options.method), options.variants), _folder(options)
    _check_attack_options(options, experiment)
    config = located(options.config or experiment.config)
    seeds, examples, last = BUDGETS[options.budget]
    seeds = seeds if options.seeds is None else options.seeds
    examples = examples if options.examples is None else options.examples
    from lightning_paf.experiments.run import Task

    words, options.search_precision = (*_data(options, experiment, folder), *last), _resolved(options.search_precision)
    evaluated = examples, options.autoattack_examples, options.search_precision, options.strong
    tasks = [
        Task(options.method, variant.name, seed, folder, config, words, *evaluated)
        for seed in range(experiment.first_seed, experiment.first_seed + seeds)
        for variant in experiment.variants
    ]
    count = len(experiment.variants)
    print(f"{experiment.title}\n{count} variants x {seeds} seeds, {options.jobs} at a time, in {folder}")
    try:
        _perform(tasks, experiment, options.jobs)
    except RuntimeError as error:
        print(f"lightning-paf: error: {error}", file=sys.stderr)
        return 1
    _conclude(options, experiment, tasks)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = command_parser("reproduce", __doc__)
    add = parser.add_argument
    add("method", nargs="?", help="name of the method, see --list")
    add("--list", action="store_true", help="list all methods and their claims")
    add("--table", type=Path, metavar="FOLDER", help="print the results in a folder as Markdown")
    add("--budget", choices=tuple(BUDGETS), default="cpu", help="cpu: minutes on 2 cores; smoke: a quick trial")
    add(
        "--seeds",
        type=number(int, least=2),
        help="trainings of each variant, at least 2, whose spread is part of every interval (default: by budget)",
    )
    add("--variants", nargs="+", metavar="NAME", help="train only these, and test only the claims about them")
    add("--examples", type=positive, help="test images to evaluate (default: by budget)")
    add("--autoattack-examples", type=positive, help="test images for AutoAttack (default: all that are evaluated)")
    add(
        "--search-precision",
        choices=("fp32", "bf16", "auto"),
        default="fp32",
        help="bf16: faster, confirmed in fp32; auto: where fast",
    )
    add("--strong", action="store_true", help="also measure AutoAttack's strong version, in the same evaluation")
    add("--data.root", metavar="FOLDER", help="for --config experiments/cifar10_small: train.npz and test.npz")
    add("--data.synthetic", metavar="FILE", help="second source of training images")
    add("--jobs", type=positive, default=os.cpu_count() or 1, help="variants to train at the same time")
    add("--config", help="recipe or file that all variants share (default: small networks on digits)")
    add("--out", type=Path, default=Path("runs/reproduce"), help="folder; finished work in it is kept")
    add("--json", type=Path, metavar="FILE", help="also write the result to this file and a PNG next to it")
    return parser.parse_args(argv)


def _check_attack_options(options: argparse.Namespace, experiment: "Experiment") -> None:
    """Refuse options of AutoAttack for an experiment without it."""
    given = options.autoattack_examples or options.search_precision != "fp32" or options.strong
    if experiment.measurement and given:
        raise ValueError(
            f"--autoattack-examples, --search-precision and --strong must be omitted for {options.method}, which runs "
            "no AutoAttack, got at least one. Omit them."
        )


def _resolved(precision: "SearchPrecision") -> str:
    """The precision that `auto` is on this machine; experiments run on the CPU."""
    import torch

    from lightning_paf.speed.search_precision import resolved

    return resolved(precision, torch.device("cpu"))


def _chosen(experiment: "Experiment", names: list[str] | None) -> "Experiment":
    """The experiment with these variants, those that they need, and their claims.

    Raises:
        ValueError: A name is unknown.
    """
    known = [variant.name for variant in experiment.variants]
    chosen = set(names or known)
    if unknown := sorted(chosen.difference(known)):
        raise ValueError(f"--variants must be among {', '.join(known)}, got {', '.join(unknown)}. Pass some of them.")
    for variant in reversed(experiment.variants):
        if any(other.name in chosen and other.needs(variant) for other in experiment.variants):
            chosen.add(variant.name)
    if len(chosen) == len(known):
        return experiment
    variants = tuple(variant for variant in experiment.variants if variant.name in chosen)
    claims = tuple(claim for claim in experiment.claims if all(variant in chosen for variant, _ in claim.sides))
    part = f"only {len(variants)} of {len(known)} variants and {len(claims)} of {len(experiment.claims)} claims"
    return replace(experiment, variants=variants, claims=claims, title=f"{experiment.title}, {part}")


def _folder(options: argparse.Namespace) -> Path:
    """Folder of a configuration and budget, as trainings with others are removed."""
    full = next(iter(BUDGETS))
    config, budget = options.config and Path(options.config).stem, None if options.budget == full else options.budget
    folder: Path = options.out / "-".join(filter(None, (options.method, config, budget)))
    return folder


def _data(options: argparse.Namespace, experiment: "Experiment", folder: Path) -> list[str]:
    """Words for the data; writes the second source of the default configuration."""
    given = {name: getattr(options, name) for name in _DATA if getattr(options, name) is not None}
    pool = folder / "pool.npz"
    if experiment.pool and not options.config and "data.synthetic" not in given:
        if not pool.is_file():
            from lightning_paf.__main__ import main as command

            words = [word.replace("{pool}", str(pool)) for word in experiment.pool]
            if command(words):
                raise ValueError(f"`lightning-paf {' '.join(words)}` must succeed, got an error. See its output above.")
        given["data.synthetic"] = str(pool)
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def _typed(options: argparse.Namespace, seeds: int) -> str:
    """The command whose result it is, without paths of data."""
    words = ["lightning-paf", "reproduce", options.method, "--budget", options.budget, "--seeds", str(seeds)]
    words += ["--variants", *options.variants] if options.variants else []
    words += ["--config", options.config] if options.config else []
    words += [f"--{name} {name.rpartition('.')[2].upper()}" for name in _DATA if getattr(options, name) is not None]
    for name in ("examples", "autoattack_examples"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--search-precision", "bf16"] if options.search_precision == "bf16" else []
    words += ["--strong"] if options.strong else []
    return " ".join(words)


def _list() -> None:
    for name in experiment_names():
        experiment = find_experiment(name)
        print(f"{name}: {experiment.title}")
        for claim in experiment.claims:
            print(f"    {claim.text} ({claim.source})")


def _perform(tasks: "list[Task]", experiment: "Experiment", jobs: int) -> None:
    """Run all tasks, each after the tasks that it depends on."""
    from rich.progress import Progress

    from lightning_paf.experiments.run import Task, perform
    from lightning_paf.utils.process import end_with_parent

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    executor = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=end_with_parent)
    with executor as pool, Progress() as progress:
        bar = progress.add_task("training and evaluation", total=len(tasks))
        variants = {variant.name: variant for variant in experiment.variants}
        waiting, running = list(tasks), dict[Future[None], Task]()
        while waiting or running:
            unfinished = {(task.seed, task.variant) for task in (*waiting, *running.values())}
            for task in list(waiting):
                needed = {(task.seed, name) for name, other in variants.items() if variants[task.variant].needs(other)}
                if not needed & unfinished:
                    waiting.remove(task)
                    running[pool.submit(perform, task)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                if (error := future.exception()) is not None:
                    pool.shutdown(cancel_futures=True)
                    raise RuntimeError(
                        f"{task.variant}, seed {task.seed}: {error} Read {task.output}/log.txt, then run the same "
                        "command again: finished work is kept."
                    ) from error
                progress.update(bar, advance=1, description=f"{task.variant}, seed {task.seed}")


def _conclude(options: argparse.Namespace, experiment: "Experiment", tasks: "list[Task]") -> None:
    """Print the result, write `outcome.json` or `partial.json`, and draw the figures."""
    from lightning_paf.experiments.figure import draw
    from lightning_paf.experiments.page import show
    from lightning_paf.experiments.report import content
    from lightning_paf.utils.figures import save_figure
    from lightning_paf.utils.files import write_whole

    found = content(_typed(options, len({task.seed for task in tasks})), experiment, tasks)
    show(found)
    figures = {"": draw, **experiment.figures}
    own = tasks[0].folder / ("partial.json" if options.variants else "outcome.json")
    for path in filter(None, (own, options.json)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(found, indent=2) + "\n").encode())
        for name, drawing in figures.items():
            if (figure := drawing(found)) is not None:
                save_figure(figure, path.with_name(f"{path.stem}{name and f'-{name}'}.png"))
