"""Training and evaluation of variants, one process each; finished work is kept."""

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from lightning_paf.attacks import Attack, AutoAttack
from lightning_paf.evaluation import Evaluation, EvaluationResult, Outcome, Samples
from lightning_paf.evaluation.files import ResultFiles
from lightning_paf.experiments.experiment import Experiment, Variant, find_experiment
from lightning_paf.experiments.metrics import correct, margin_pgd
from lightning_paf.loading import Run, load_run
from lightning_paf.speed.search_model import Precision
from lightning_paf.utils.files import write_whole

BLOCK_SIZE = 512


@dataclass(frozen=True)
class Task:
    """One variant with one seed.

    Attributes:
        experiment: Name of the experiment.
        variant: Name of the variant.
        seed: Seed of weights, data order and attacks.
        folder: Folder of the experiment; this task writes to `VARIANT-SEED` in it.
        config: Configuration that all variants share.
        options: Last words of `fit`, such as those for a shorter training.
        examples: Number of test images to evaluate.
        autoattack_examples: Number of them that AutoAttack runs on; None for all.
        search_precision: Precision of the searches; every success is confirmed in float32.
        strong: Whether AutoAttack runs its strong version, for the metric `strong`; `autoattack` is the same.
    """

    experiment: str
    variant: str
    seed: int
    folder: Path
    config: Path
    options: tuple[str, ...]
    examples: int
    autoattack_examples: int | None = None
    search_precision: Precision = "fp32"
    strong: bool = False

    @property
    def output(self) -> Path:
        """Folder of this task."""
        return self.folder / f"{self.variant}-{self.seed}"

    @property
    def result(self) -> Path:
        """File of the metrics, written at the end."""
        return self.output / "measured.json"


def perform(task: Task) -> None:
    """Train, evaluate, and write `measured.json`; output goes to `log.txt`.

    Raises:
        RuntimeError: A command failed; its message is in the log.
    """
    experiment = find_experiment(task.experiment)
    variant = next(variant for variant in experiment.variants if variant.name == task.variant)
    _remove_stale(task, experiment, variant)
    if task.result.is_file():
        return
    torch.set_num_threads(1)
    with _into(task.output / "log.txt"):
        trained = task.output / "trained"
        if not trained.is_file():
            for words in (*variant.before, _fit_words(task, experiment, variant)):
                _command(_filled(words, task, experiment))
            trained.touch()
        measured = _evaluate(task, experiment, variant)
    content = {name: np.asarray(values, np.float64).reshape(-1).tolist() for name, values in measured.items()}
    write_whole(task.result, json.dumps(content).encode())


def measured(task: Task) -> dict[str, NDArray[np.float64]]:
    """Metrics that `perform` has written."""
    return {name: np.array(values, np.float64) for name, values in json.loads(task.result.read_text()).items()}


def eps_of(task: Task, experiment: Experiment) -> float:
    """Radius of the evaluation of a trained variant."""
    if experiment.eps is not None:
        return experiment.eps
    config = yaml.safe_load((task.output / "run" / "config.yaml").read_text())
    return float(Fraction(str(config["model"]["attack"]["init_args"]["eps"])))


def _remove_stale(task: Task, experiment: Experiment, variant: Variant) -> None:
    """Remove a training with other options, and metrics of other settings."""
    commands = [*variant.before, _fit_words(task, experiment, variant), variant.test_options]
    evaluated: dict[str, Any] = {
        "eps": experiment.eps,
        "examples": [task.examples, task.autoattack_examples],
        "metrics": experiment.own_metrics,
    }
    if task.search_precision != "fp32":
        evaluated["precision"] = task.search_precision
    if task.strong:
        evaluated["strong"] = True
    text = json.dumps({"commands": commands, "config": task.config.read_text(), **evaluated}, indent=1)
    settings = task.output / "settings.json"
    before, now = json.loads(settings.read_text()) if settings.is_file() else {}, json.loads(text)
    if before == now:
        return
    if any(before.get(part) != now[part] for part in ("commands", "config")):
        shutil.rmtree(task.output, ignore_errors=True)
    task.result.unlink(missing_ok=True)
    task.output.mkdir(parents=True, exist_ok=True)
    write_whole(settings, text.encode())


def _fit_words(task: Task, experiment: Experiment, variant: Variant) -> list[str]:
    seed = ["--seed_everything", str(task.seed), "--data.seed", str(task.seed)]
    options = [*experiment.options, *variant.options, *task.options, *variant.last]
    return ["fit", "-c", "{config}", *seed, *options, "--run", "{folder}/run", "--ckpt_path", "auto"]


def _filled(words: Sequence[str], task: Task, experiment: Experiment) -> list[str]:
    """Words with their placeholders filled in."""
    names = (variant.name for variant in experiment.variants)
    paths = {"config": task.config, "folder": task.output}
    paths |= {name: _checkpoint(task.folder / f"{name}-{task.seed}") for name in names}
    return [re.sub(r"{([\w.-]+)}", lambda found: str(paths[found[1]]), word) for word in words]


def _checkpoint(folder: Path) -> Path:
    return folder / "run" / "checkpoints" / "last.ckpt"


def _command(words: list[str]) -> None:
    from lightning_paf.__main__ import main

    print("$ lightning-paf", *words, flush=True)  # noqa: T201  # into the log
    status = main(words)
    if status:
        raise RuntimeError(f"lightning-paf {words[0]} ended with status {status}.")


def _evaluate(task: Task, experiment: Experiment, variant: Variant) -> dict[str, Any]:
    """All metrics of a trained variant."""
    options, own = _filled(variant.test_options, task, experiment), experiment.measurement
    run = load_run(_checkpoint(task.output), None, "cpu", options, own.kind if own else "classifier")
    if own is not None:
        torch.manual_seed(task.seed)
        return dict(own.scores(run, task.examples))
    samples = run.samples()
    x, y = samples.fetch(samples.ids[: task.examples])
    torch.manual_seed(task.seed)
    found: dict[str, Any] = {"clean": correct(run.model, x, y)}
    eps = eps_of(task, experiment)
    evaluated, first = (
        replace(samples, ids=samples.ids[:count])
        for count in (task.examples, task.autoattack_examples or task.examples)
    )
    found["pgd"] = _attacked(task, run, "pgd", margin_pgd(eps), evaluated).outcomes == Outcome.ROBUST
    attack = AutoAttack(eps, version="strong") if task.strong else AutoAttack(eps)
    result = _attacked(task, run, "autoattack", attack, first)
    found["autoattack"] = result.robust_before("smoothed-pgd")
    if task.strong:
        found["strong"] = result.outcomes == Outcome.ROBUST
    return found | {name: metric(run, x, y) for name, metric in experiment.metrics.items()}


def _attacked(task: Task, run: Run, name: str, attack: Attack, samples: Samples) -> EvaluationResult:
    """Evaluate a trained variant under an attack, or resume that."""
    evaluation = Evaluation(run.model, attack, samples, 0, BLOCK_SIZE, task.search_precision)
    return evaluation.run(ResultFiles.of(task.output, name, attack).state(evaluation.identity))


@contextlib.contextmanager
def _into(log: Path) -> Iterator[None]:
    """Redirect all output to a file, including output that bypasses `sys.stdout`."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with log.open("a") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        # Not closed: logging handlers that are created meanwhile keep these streams for the next log.
        out, error = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                yield
            finally:
                out.flush()
                error.flush()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
