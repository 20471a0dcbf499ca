"""Run everything that needs a CUDA device, in resumable steps: tests, benchmarks, and training on CIFAR-10.

    python benchmarks/gpu.py --data DIR --pool POOL.npz         # all steps; results in docs/results/gpu
    python benchmarks/gpu.py --step tests step                  # some of them
    python benchmarks/gpu.py --device cpu                       # a rehearsal: all steps at a tiny size on the CPU

Each step writes NAME.json and takes less than nine minutes. A step whose file exists is skipped; delete the file to
repeat it. Repeat the command after an interruption: trainings and evaluations resume, other steps restart. DIR holds
the original CIFAR-10, or train.npz and test.npz, as `--data.root` does. POOL.npz holds further training images.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

from gpu_steps import GRACE, ROOT, FailedError, Job, Report, Step

from lightning_paf.runs.metrics_table import read_table
from lightning_paf.utils.files import write_whole

USED = 0.85
"""Fraction of the time of a training that is planned for its steps; the rest is for compilation and validation."""
PAPER_BATCH = 256
"""Batch size of configs/paper/resnet18_linf.yaml."""


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
    write_whole(job.result(name), file.read_text().replace(f"{ROOT}/", "").encode())


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
        words += ["--model.attack.step_size", 0.02]
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
    words += ["--autoattack.search_precision", "bf16", "--autoattack.test_examples", 1000 if job.cuda else 24]
    if not job.cuda:
        words += ["--autoattack.attack.version", "custom", "--autoattack.attack.attacks", "[apgd-ce, apgd-t]"]
    job.check(name, "-m", "lightning_paf", *words)
    found = json.loads((run / "test" / "autoattack_linf_8-255.json").read_text())
    job.write(name, found)


def compare(job: Job) -> None:
    """Compare both networks on the same images."""
    # Relative, since the file holds the paths.
    results = (os.path.relpath(job.result(f"autoattack_{activation}"), ROOT) for activation in ("pssilu", "relu"))
    job.check("compare", "-m", "lightning_paf", "compare", *results, "--json", job.result("compare"))


def row(name: str, program: str, *cuda: object, net: str = "resnet18") -> Step:
    """Make the step of one row of docs/performance.md; `cuda` are options of the full size."""
    network = ("--net", net)
    return Step(name, partial(benchmark, program, (*network, *cuda), (*network, "--quick"), name))


STEPS = (
    Step("tests", tests, packages=("pytest", "hypothesis")),
    row("step", "step.py"),
    row("step_compiled", "step.py", "--compile"),
    row("utilisation_resnet18", "utilisation.py", "--compile"),
    row("utilisation_wrn28_10", "utilisation.py", "--compile", net="wrn28_10"),
    row("epoch", "epoch.py", "--compile"),
    row("first_step", "first_step.py", "--compile", "--repeats", 2),
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
