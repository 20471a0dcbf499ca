"""Test a paper's claims: train its method and baselines, evaluate with AutoAttack."""

import argparse
import json
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.experiments import find_study, study_names
from lightning_paf.recipes import located

if TYPE_CHECKING:
    from lightning_paf.experiments.experiment import Study
    from lightning_paf.experiments.run import Task

BUDGETS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "cpu": (3, 100, ()),
    "smoke": (2, 16, ("--trainer.max_epochs", "1")),
}
"""Seeds, evaluated test images, and last options of `fit`; `smoke` only shows that everything runs."""


def main(argv: list[str]) -> int:
    """Run a study, or list the studies.

    Args:
        argv: Options, see `--help`.

    Returns:
        0, whatever the outcome: a claim that fails is a result; 1 where a training failed.

    Raises:
        ValueError: There is no such study, or no such folder; a number that makes no comparison.
    """
    options = _parse(argv)
    if options.list:
        _list()
        return 0
    if options.table:
        from lightning_paf.experiments.page import page

        print(page(options.table))
        return 0
    if options.method is None:
        raise ValueError(f"A study needs its method, one of {', '.join(study_names())}. Or pass --list or --table.")
    options.config = located(options.config)
    study, folder = find_study(options.method), _folder(options)
    seeds, examples, last = BUDGETS[options.budget]
    seeds = seeds if options.seeds is None else options.seeds
    examples = examples if options.examples is None else options.examples
    _check_numbers(seeds, examples, options.jobs)
    tasks = [
        _task(options, folder, arm.name, seed, last, examples)
        for seed in range(study.first_seed, study.first_seed + seeds)
        for arm in study.arms
    ]
    print(f"{study.title}\n{len(study.arms)} arms x {seeds} seeds, {options.jobs} at a time, in {folder}")
    try:
        _perform(tasks, study, options.jobs)
    except RuntimeError as error:
        print(f"lightning-paf: error: {error}", file=sys.stderr)
        return 1
    _conclude(options, study, tasks, folder)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("lightning-paf reproduce", description=__doc__)
    parser.add_argument("method", nargs="?", help="its name, see --list")
    parser.add_argument("--list", action="store_true", help="all methods and what is claimed of them")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the results in a folder as Markdown")
    parser.add_argument(
        "--budget", choices=tuple(BUDGETS), default="cpu", help="cpu: minutes on 2 cores; smoke: a trial"
    )
    parser.add_argument("--seeds", type=int, help="trainings of each arm; default: that of the budget")
    parser.add_argument("--examples", type=int, help="test images to evaluate; default: that of the budget")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="arms trained at the same time")
    parser.add_argument("--config", default="studies/digits", help="recipe or file of the common experiment")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce"), help="output folder; finished runs in it are kept"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the outcome to this file, and a PNG next to it"
    )
    return parser.parse_args(argv)


def _folder(options: argparse.Namespace) -> Path:
    """Output folder; each budget other than the full one has its own."""
    full = next(iter(BUDGETS))
    name = options.method if options.budget == full else f"{options.method}-{options.budget}"
    folder: Path = options.out / name
    return folder


def _check_numbers(seeds: int, examples: int, jobs: int) -> None:
    for name, number, least, why in (
        ("seeds", seeds, 2, "the spread between trainings is part of every interval"),
        ("examples", examples, 1, "an evaluation needs an image"),
        ("jobs", jobs, 1, "a training needs a process"),
    ):
        if number < least:
            raise ValueError(f"--{name} must be at least {least} ({why}), got {number}. Pass --{name} {least + 1}.")


def _list() -> None:
    for name in study_names():
        study = find_study(name)
        print(f"{name}: {study.title}")
        for claim in study.claims:
            print(f"    {claim.text} ({claim.source})")


def _task(
    options: argparse.Namespace, folder: Path, arm: str, seed: int, last: tuple[str, ...], examples: int
) -> "Task":
    from lightning_paf.experiments.run import Task

    return Task(options.method, arm, seed, folder, options.config, last, examples)


def _perform(tasks: "list[Task]", study: "Study", jobs: int) -> None:
    """Run all tasks, each after those that it needs."""
    from rich.progress import Progress

    from lightning_paf.experiments.run import Task, perform

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool, Progress() as progress:
        bar = progress.add_task("training and evaluation", total=len(tasks))
        arms = {arm.name: arm for arm in study.arms}
        waiting, running = list(tasks), dict[Future[None], Task]()
        while waiting or running:
            open_arms = {(task.seed, task.arm) for task in (*waiting, *running.values())}
            for task in list(waiting):
                needed = {(task.seed, name) for name, other in arms.items() if arms[task.arm].needs(other)}
                if not needed & open_arms:
                    waiting.remove(task)
                    running[pool.submit(perform, task)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                if (error := future.exception()) is not None:
                    pool.shutdown(cancel_futures=True)
                    raise RuntimeError(
                        f"{task.arm}, seed {task.seed}: {error} Read {task.place}/log.txt, and repeat the command: "
                        "finished runs are kept."
                    ) from error
                progress.update(bar, advance=1, description=f"{task.arm}, seed {task.seed}")


def _conclude(options: argparse.Namespace, study: "Study", tasks: "list[Task]", folder: Path) -> None:
    """Print the outcome, write `outcome.json` and draw `outcome.png`."""
    from lightning_paf.experiments.page import show
    from lightning_paf.experiments.picture import draw
    from lightning_paf.experiments.report import content
    from lightning_paf.utils.figures import save_figure
    from lightning_paf.utils.files import write_whole

    found: dict[str, Any] = content(options.method, study, tasks, options.budget)
    show(found)
    for path in filter(None, (folder / "outcome.json", options.json)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(found, indent=2) + "\n").encode())
        save_figure(draw(found), path.with_suffix(".png"))
