"""Train and judge the arms of a study: one process an arm, what is finished is not done again."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.experiments.experiment import Arm, Study, find_study
from lightning_paf.experiments.metrics import margin_pgd
from lightning_paf.utils.files import write_whole

if TYPE_CHECKING:
    from lightning_paf.loading import Run

JUDGED_AT_ONCE = 512


@dataclass(frozen=True)
class Task:
    """One arm with one seed.

    Attributes:
        study: Name of the study.
        arm: Name of the arm.
        seed: Of weights, data order, attacks.
        folder: Of the study; everything of this task goes to `ARM-SEED` in it.
        config: Experiment that all arms share.
        options: Words of `fit` that come last, such as a shorter training.
        examples: Test images that are judged.
    """

    study: str
    arm: str
    seed: int
    folder: Path
    config: Path
    options: tuple[str, ...]
    examples: int

    @property
    def place(self) -> Path:
        """Folder of this task."""
        return self.folder / f"{self.arm}-{self.seed}"

    @property
    def result(self) -> Path:
        """What was measured, once it is done."""
        return self.place / "measured.json"

    @property
    def trained(self) -> Path:
        """Is there once its commands are done."""
        return self.place / "trained"

    @property
    def asked(self) -> Path:
        """What `measured.json` is the answer to."""
        return self.place / "asked.json"


def perform(task: Task) -> None:
    """Train, judge, and write `measured.json`; what is printed goes to `log.txt`.

    Raises:
        RuntimeError: A command failed; its message is in the log.
    """
    study = find_study(task.study)
    arm = next(arm for arm in study.arms if arm.name == task.arm)
    _forget_another(task, study, arm)
    if task.result.is_file():
        return
    import torch

    torch.set_num_threads(1)
    with _into(task.place / "log.txt"):
        if not task.trained.is_file():
            for words in (*(_filled(words, task, study) for words in arm.before), _fit_words(task, study, arm)):
                _command(words)
            task.trained.touch()
        measured = _judged(task, study, arm)
    content = {name: np.asarray(values, np.float64).reshape(-1).tolist() for name, values in measured.items()}
    write_whole(task.result, json.dumps(content).encode())


def measured(task: Task) -> dict[str, NDArray[np.float64]]:
    """What `perform` has written."""
    return {name: np.array(values, np.float64) for name, values in json.loads(task.result.read_text()).items()}


def _forget_another(task: Task, study: Study, arm: Arm) -> None:
    """Remove what was trained with other options, and what was measured in another way."""
    commands = [*arm.before, _fit_words(task, study, arm), arm.test_options]
    asked = {"commands": commands, "config": task.config.read_text(), "eps": study.eps, "examples": task.examples}
    text = json.dumps(asked | {"measures": sorted(study.measures)}, indent=1)
    before, now = json.loads(task.asked.read_text()) if task.asked.is_file() else {}, json.loads(text)
    if before == now:
        return
    if any(before.get(part) != now[part] for part in ("commands", "config")):
        shutil.rmtree(task.place, ignore_errors=True)
    task.result.unlink(missing_ok=True)
    task.place.mkdir(parents=True, exist_ok=True)
    write_whole(task.asked, text.encode())


def _fit_words(task: Task, study: Study, arm: Arm) -> list[str]:
    seed = ["--seed_everything", str(task.seed), "--data.seed", str(task.seed)]
    options = [*study.options, *arm.options, *task.options]
    words = ["fit", "-c", str(task.config), *seed, *options, "--run", str(task.place / "run"), "--ckpt_path", "auto"]
    return _filled(words, task, study)


def _filled(words: Sequence[str], task: Task, study: Study) -> list[str]:
    """Placeholders replaced by what they stand for."""
    places = {f"{{{arm.name}}}": str(_checkpoint(task.folder / f"{arm.name}-{task.seed}")) for arm in study.arms}
    places["{folder}"] = str(task.place)
    filled = []
    for word in words:
        for place, path in places.items():
            word = word.replace(place, path)
        filled.append(word)
    return filled


def _checkpoint(place: Path) -> Path:
    return place / "run" / "checkpoints" / "last.ckpt"


def _command(words: list[str]) -> None:
    from lightning_paf.__main__ import main

    print("$ lightning-paf", *words, flush=True)  # noqa: T201  # into the log
    status = main(words)
    if status:
        raise RuntimeError(f"lightning-paf {words[0]} ended with status {status}.")


def _judged(task: Task, study: Study, arm: Arm) -> dict[str, Any]:
    """All measures of a trained arm."""
    import torch

    from lightning_paf.functional.predictions import misclassified
    from lightning_paf.loading import load_run

    run = load_run(_checkpoint(task.place), device="cpu", options=_filled(arm.test_options, task, study))
    samples = run.samples(task.examples)
    x, y = samples.fetch(samples.ids)
    torch.manual_seed(task.seed)
    with torch.no_grad():
        found: dict[str, Any] = {"clean": (~misclassified(run.model(x), y)).numpy()}
    found |= _robust(run, study.eps, samples)
    return found | {name: measure(run, x, y) for name, measure in study.measures.items()}


def _robust(run: "Run", eps: float, samples: Any) -> dict[str, NDArray[np.bool_]]:
    """Whether each image withstands PGD (with the margin loss, three starts) and standard AutoAttack."""
    from lightning_paf.attacks import AutoAttack
    from lightning_paf.evaluation import Evaluation, Outcome

    attacks = {"pgd": margin_pgd(eps), "autoattack": AutoAttack(eps, version="standard")}
    return {
        name: Evaluation(run.model, attack, samples, block_size=JUDGED_AT_ONCE).run().outcomes == Outcome.ROBUST
        for name, attack in attacks.items()
    }


@contextlib.contextmanager
def _into(log: Path) -> Iterator[None]:
    """Send everything that is printed to a file, also what libraries print past `sys.stdout`."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with log.open("a") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        # Not closed: what is created meanwhile, such as a handler of a logger, keeps them for the next log.
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
