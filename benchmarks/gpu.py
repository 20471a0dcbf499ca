"""Run everything that needs a CUDA device, in resumable steps: tests, benchmarks, and training on CIFAR-10.

    python benchmarks/gpu.py --data DIR --pool POOL.npz         # all steps; results in docs/results/gpu
    python benchmarks/gpu.py --step tests step                  # some of them
    python benchmarks/gpu.py --device cpu                       # a rehearsal: all steps at a tiny size on the CPU

Each step writes NAME.json and takes less than nine minutes. A step whose file exists is skipped; delete the file to
repeat it. Repeat the command after an interruption: trainings and evaluations resume, other steps restart. DIR holds
the original CIFAR-10, or train.npz and test.npz, as `--data.root` does. POOL.npz holds further training images.
"""

import argparse
import importlib.util
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import measure

from lightning_paf.runs.metrics_table import read_table
from lightning_paf.utils.process import EXIT_STATUS

ROOT = Path(__file__).resolve().parents[1]
GRACE = 30
"""Seconds from the time limit of a step to its end by force; a training saves a checkpoint in them."""
USED = 0.85
"""Fraction of the time of a training that is planned for its steps; the rest is for compilation and validation."""
PAPER_BATCH = 256
"""Batch size of configs/paper/resnet18_linf.yaml."""


class UnfinishedError(Exception):
    """A step that reached its time limit."""


class FailedError(Exception):
    """A step whose program failed."""


@dataclass(frozen=True)
class Job:
    """Settings of all steps.

    Attributes:
        device: `cuda`, or `cpu` for a rehearsal.
        data: Folder of CIFAR-10, or None.
        pool: File of further training images, or None.
        out: Folder of the results.
        work: Folder of logs, runs and other files that are needed to resume.
        limit: Seconds of one step.
        minutes: Length of one training.
    """

    device: str
    data: Path | None
    pool: Path | None
    out: Path
    work: Path
    limit: float
    minutes: float

    @property
    def cuda(self) -> bool:
        """Whether the sizes are full."""
        return self.device == "cuda"

    def result(self, name: str) -> Path:
        """Return the result file of a step."""
        return self.out / f"{name}.json"

    def is_done(self, name: str) -> bool:
        """Return whether a step has a result without failures."""
        file = self.result(name)
        return file.is_file() and not json.loads(file.read_text()).get("failed")

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a result with a description of the machine."""
        import torch

        measure.write(self.result(name), {"machine": measure.machine(torch.device(self.device)), **content})

    def python(self, name: str, *words: object, **environment: str) -> int:
        """Run `python WORDS` under the time limit, copy its output to the log of the step, and return its status."""
        command = [sys.executable, *map(str, words)]
        log = self.work / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, **environment}
        print(f"$ {shlex.join(['python', *command[1:]])}", flush=True)
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with (
            log.open("a") as stream,
            subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **options) as process,
        ):
            with _limited(process, self.limit) as reached:
                for line in process.stdout:
                    print(line, end="", flush=True, file=stream)
                    print(f"  {line}", end="", flush=True)
            status = process.wait()
        if reached.is_set() or status == EXIT_STATUS:
            raise UnfinishedError
        return status

    def check(self, name: str, *words: object, **environment: str) -> None:
        """Run `python WORDS`, which must succeed."""
        status = self.python(name, *words, **environment)
        if status:
            raise FailedError(f"exit status {status}; see {self.work / 'logs' / name}.log")


class _limited:
    """Ends a process and its children at a time limit, and at an exception."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self.process, self.reached = process, threading.Event()
        self.timers = [threading.Timer(seconds, self._stop), threading.Timer(seconds + GRACE, self._kill)]

    def __enter__(self) -> threading.Event:
        for timer in self.timers:
            timer.daemon = True
            timer.start()
        return self.reached

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.timers[0].cancel()
        if kind is not None:  # Ctrl-C reaches only this process
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._kill()
        self.timers[1].cancel()

    def _stop(self) -> None:
        self.reached.set()
        self.process.terminate()

    def _kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Step:
    """A step with its requirements.

    Attributes:
        name: Name of the result file.
        run: Makes the result file.
        packages: Modules that it needs.
        after: Earlier steps that it needs.
        data: Whether it needs CIFAR-10.
    """

    name: str
    run: Callable[[Job], None]
    packages: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    data: bool = False

    def obstacle(self, job: Job) -> str:
        """Return the reason to skip the step; empty if there is none."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        undone = [name for name in self.after if not job.is_done(name)]
        if missing:
            return f"needs the package {' and '.join(missing)}"
        if self.data and job.data is None:
            return "needs CIFAR-10: pass --data DIR (make gpu DATA=DIR)"
        return f"needs the step {' and '.join(undone)}" if undone else ""

    def attempt(self, job: Job) -> tuple[str, str]:
        """Run the step unless it is done or lacks a requirement; return its state and a remark."""
        if job.is_done(self.name):
            return "done", f"before; delete {shown(job.result(self.name))} to repeat it"
        if reason := self.obstacle(job):
            return "skipped", reason
        print(f"\n== {self.name}", flush=True)
        try:
            self.run(job)
        except UnfinishedError:
            return "unfinished", f"stopped after {job.limit:.0f} s; repeat the command"
        except FailedError as error:
            return "failed", str(error)
        except Exception as error:  # the other steps still run
            traceback.print_exc()
            return "failed", f"{type(error).__name__}: {error}"
        return "done", ""


def tests(job: Job) -> None:
    """Run the tests with the marker `gpu`."""
    report = job.work / "tests.xml"
    words = ["-m", "pytest", "-m", "gpu", "tests", "--junitxml", report, "-p", "no:cacheprovider", "--durations", 5]
    status = job.python("tests", *words, PAF_TEST_DEVICE=job.device)
    if status not in (0, 1):
        raise FailedError(f"exit status {status} of pytest; see {job.work}/logs/tests.log")
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = {"failure", "error"}
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if bad & {part.tag for part in case}]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if len(case) == 0]
    job.write("tests", {"passed": len(passed), "skipped": skipped, "failed": failed, "tests": passed})
    if failed:
        raise FailedError(f"{len(failed)} of {len(cases)} tests; see {job.work}/logs/tests.log")


def benchmark(program: str, cuda: Sequence[object], cpu: Sequence[object], name: str, job: Job) -> None:
    """Run a benchmark; its file appears when it is complete."""
    file = job.work / f"{name}.json"
    sizes = cuda if job.cuda else cpu
    job.check(name, f"benchmarks/{program}", "--device", job.device, "--json", file, *sizes)
    job.out.mkdir(parents=True, exist_ok=True)
    shutil.move(file, job.result(name))


def ratio(job: Job) -> None:
    """Time our AutoAttack against the reference package, on the network that it ships."""
    assert job.data is not None
    words = ["--case", "resnet18", "--data", job.data, "--eps", "1/340", "--precisions", "fp32", "bf16"]
    cuda = ["--images", 64, "--repeats", 3, "--seconds", 0.8 * job.limit]
    cpu = ["--images", 4, "--repeats", 1, "--budget", 0.01]
    benchmark("autoattack.py", [*words, *cuda], [*words, *cpu], "autoattack_ratio", job)


def fit(job: Job, name: str, activation: str, epochs: int, images: int) -> Path:
    """Train ResNet-18 with the recipe of the paper, or resume it; return the run folder."""
    run = job.work / "runs" / name
    words = ["-m", "lightning_paf", "fit", "-c", "paper/resnet18_linf", "--model.activation", activation, *data(job)]
    words += ["--seed_everything", 0, "--data.seed", 0, "--data.epoch", images, "--trainer.max_epochs", epochs]
    words += ["--trainer.check_val_every_n_epoch", max(1, epochs // 4), "--trainer.enable_progress_bar", "false"]
    if job.cuda:
        words += ["--trainer", "gpu1", "--model.speed", "compiled"]
    else:
        words += ["--trainer", "cpu", "--trainer.precision", "bf16-mixed", "--data.num_workers", 0]
        words += ["--model.net.init_args.width", 4, "--data.val_size", 16, "--model.attack.steps", 2]
    job.check(name, *words, "--run", run, "--ckpt_path", "auto")
    return run


def data(job: Job) -> list[object]:
    """Options of the images."""
    assert job.data is not None
    words: list[object] = ["--data.root", job.data, "--data.augment", "CropFlip", "--data.batch_size", batch_size(job)]
    if (job.data / "train.npz").is_file():
        words += ["--data.dataset", "npz", "--data.num_classes", 10]
    if job.pool is not None:
        words += ["--data.synthetic", job.pool, "--data.real_fraction", 0.3]
    return words


def batch_size(job: Job) -> int:
    return PAPER_BATCH if job.cuda else 16


def rate(job: Job) -> None:
    """Measure the speed of a training with PSSiLU, and choose the number of images that both trainings see."""
    shutil.rmtree(job.work / "runs" / "rate", ignore_errors=True)
    batch = batch_size(job)
    run = fit(job, "rate", "pssilu", epochs=2, images=(40 if job.cuda else 2) * batch)
    speed = measured(run, "run/images_per_second")[-1]  # the first epoch includes compilation
    epochs = 20 if job.cuda else 2
    images = 60 * job.minutes * USED * speed if job.cuda else 4 * batch
    plan = {"epochs": epochs, "images": batch * max(1, math.floor(images / epochs / batch))}
    job.write("rate", {"images_per_second": speed, "minutes": job.minutes, "plan": plan})


def measured(run: Path, metric: str) -> list[float]:
    """Return the values of a metric of a run."""
    return [float(row[metric]) for row in read_table(run / "metrics.csv")[1] if row.get(metric)]


def train(activation: str, job: Job) -> None:
    """Train with the plan of `rate`, over several calls if necessary."""
    plan = json.loads(job.result("rate").read_text())["plan"]
    name = f"fit_{activation}"
    run = fit(job, name, activation, **plan)
    columns = [column for column in read_table(run / "metrics.csv")[0] if column not in ("epoch", "step")]
    metrics = {column: measured(run, column) for column in columns}
    speed = median(metrics["run/images_per_second"])
    content = {"plan": plan, "images": plan["epochs"] * plan["images"], "images_per_second": speed, "metrics": metrics}
    job.write(name, content)


def evaluate(activation: str, job: Job) -> None:
    """Run standard AutoAttack on 1,000 images, over several calls if necessary."""
    name = f"autoattack_{activation}"
    run = job.work / "runs" / f"fit_{activation}"
    words = ["test", "--ckpt_path", run / "checkpoints" / "last.ckpt", "--val_attack", "null"]
    words += ["--autoattack.search_precision", "bf16", "--autoattack.test_examples", 1000 if job.cuda else 8]
    if not job.cuda:
        words += ["--autoattack.attack.version", "custom", "--autoattack.attack.attacks", "[apgd-ce, apgd-t]"]
    job.check(name, "-m", "lightning_paf", *words)
    found = json.loads((run / "test" / "autoattack_linf_8-255.json").read_text())
    job.write(name, found)


def compare(job: Job) -> None:
    """Compare both networks on the same images."""
    results = (job.result(f"autoattack_{activation}") for activation in ("pssilu", "relu"))
    job.check("compare", "-m", "lightning_paf", "compare", *results, "--json", job.result("compare"))


def row(name: str, program: str, *words: object, cpu: Sequence[object] = ("--quick",)) -> Step:
    """Make the step of one row of docs/performance.md."""
    return Step(name, partial(benchmark, program, words, cpu, name))


COMPILED = ("--quick", "--net", "wrn10", "--batch", 4, "--repeats", 1, "--compile")
STEPS = (
    Step("tests", tests, packages=("pytest", "hypothesis")),
    row("step", "step.py"),
    row("step_compiled", "step.py", "--compile"),
    row("utilisation_resnet18", "utilisation.py", "--compile"),
    row("utilisation_wrn28_10", "utilisation.py", "--compile", "--net", "wrn28_10"),
    row("epoch", "epoch.py", "--compile"),
    row("first_step", "first_step.py", "--compile", "--repeats", 2, cpu=COMPILED),
    Step("rate", rate, data=True),
    Step("fit_relu", partial(train, "relu"), data=True, after=("rate",)),
    Step("fit_pssilu", partial(train, "pssilu"), data=True, after=("rate",)),
    Step("autoattack_relu", partial(evaluate, "relu"), after=("fit_relu",)),
    Step("autoattack_pssilu", partial(evaluate, "pssilu"), after=("fit_pssilu",)),
    Step("compare", compare, after=("autoattack_relu", "autoattack_pssilu")),
    Step("autoattack_ratio", ratio, packages=("pyautoattack",), data=True),
)


def digits_as_cifar(folder: Path) -> Path:
    """Write the digits with the shape of CIFAR-10, for a rehearsal without it."""
    import numpy as np

    from lightning_paf.data.sources import read_dataset
    from lightning_paf.specs import dataset_spec

    folder.mkdir(parents=True, exist_ok=True)
    found = read_dataset(dataset_spec("digits"), folder, download=False)
    for name, part in found._asdict().items():
        image = part.images.repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
        np.savez(folder / f"{name}.npz", image=image, label=part.labels)
    return folder


@dataclass
class Report:
    """States of the steps."""

    rows: list[tuple[str, str, float, str]] = field(default_factory=list)

    def run(self, steps: Sequence[Step], job: Job) -> None:
        for number, step in enumerate(steps):
            started = time.perf_counter()
            try:
                state, remark = step.attempt(job)
            except KeyboardInterrupt:
                self.rows += [(other.name, "unfinished", 0.0, "interrupted") for other in steps[number:]]
                return
            self.rows.append((step.name, state, time.perf_counter() - started, remark))

    def print(self, out: Path) -> int:
        """Print a table, and return the exit status."""
        print(f"\nResults: {shown(out)}")
        for name, state, seconds, remark in self.rows:
            print(f"{name:20}  {state:10}  {seconds:5.0f} s  {remark}".rstrip())
        states = [state for _, state, _, _ in self.rows]
        print(", ".join(f"{states.count(s)} {s}" for s in ("done", "skipped", "unfinished", "failed") if s in states))
        return 1 if "failed" in states else EXIT_STATUS if "unfinished" in states else 0


def shown(path: Path) -> Path:
    """Return a path relative to the current folder, if it is in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu rehearses all steps")
    names = [step.name for step in STEPS]
    parser.add_argument("--step", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10; a rehearsal can do without")
    parser.add_argument("--pool", type=Path, help="file of further training images (image, label), 70 %% of a batch")
    parser.add_argument("--out", type=Path, help="folder of the results (default: docs/results/gpu)")
    parser.add_argument("--work", type=Path, help="folder of logs, runs and checkpoints (default: build/gpu)")
    parser.add_argument("--limit", type=float, default=505, help=f"seconds of a step; it ends {GRACE} s later")
    parser.add_argument("--minutes", type=float, default=5, help="length of each of the two trainings")
    options = parser.parse_args(arguments)
    for path in (options.data, options.pool):
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
    if options.limit <= 0 or options.minutes <= 0:
        parser.error("--limit and --minutes must be positive")
    return options


def job_of(options: argparse.Namespace) -> Job:
    """Fill in the folders that depend on the device."""
    rehearsal = options.device == "cpu"
    work = options.work or ROOT / "build" / ("gpu-rehearsal" if rehearsal else "gpu")
    out = options.out or (work / "results" if rehearsal else ROOT / "docs" / "results" / "gpu")
    found = digits_as_cifar(work.absolute() / "data") if rehearsal and options.data is None else options.data
    paths = [path and path.absolute() for path in (found, options.pool, out, work)]
    return Job(options.device, *paths, options.limit, options.minutes)


def main(arguments: Sequence[str] | None = None) -> int:
    import torch

    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"This needs a CUDA device, and torch {torch.__version__} finds none; DEVICE=cpu (--device cpu) rehearses."
        )
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    job, report = job_of(options), Report()
    report.run([step for step in STEPS if step.name in options.step], job)
    return report.print(job.out)


if __name__ == "__main__":
    sys.exit(main())
