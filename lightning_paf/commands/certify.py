"""Certify l2 radii of a network that is smoothed by Gaussian noise (randomised smoothing)."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.analysis.randomized_smoothing import Certificates, Smoothing
    from lightning_paf.loading import Run

ROWS = 8
"""Radii in the table, from 0 in steps of sigma / 2."""


def main(argv: list[str]) -> int:
    """Certify, and print a table; write picture and JSON file where asked for.

    Args:
        argv: Options, see `--help`.

    Raises:
        ValueError: An option makes no sense, or the run cannot be read.
    """
    options, rest = _parse(argv)
    from lightning_paf.analysis.randomized_smoothing import Smoothing
    from lightning_paf.loading import load_run

    n0, n = options.samples
    smoothing = Smoothing(options.sigma, n0, n, options.alpha, options.seed, options.batch_size)
    if options.examples < 1:
        raise ValueError(f"examples must be at least 1, but is {options.examples}. Pass --examples N with N >= 1.")
    checkpoint = options.run / "checkpoints" / "last.ckpt" if options.run.is_dir() else options.run
    run = load_run(checkpoint, options.config, options.device, rest)
    samples = run.samples(options.examples)
    x, y = samples.fetch(samples.ids)
    found = _certified(smoothing, run, x)
    _print(found, y, smoothing)
    _hint(run, smoothing.sigma)
    _write(options, run, found, y, smoothing)
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_model_arguments

    parser = argparse.ArgumentParser("lightning-paf certify", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its last checkpoint), or a checkpoint")
    parser.add_argument("--sigma", type=float, required=True, help="standard deviation of the noise, pixels in [0, 1]")
    parser.add_argument(
        "--samples",
        type=int,
        nargs=2,
        default=(100, 10_000),
        metavar=("N0", "N"),
        help="noisy copies of an image that select a class, and that bound its probability (default: 100 10000)",
    )
    parser.add_argument(
        "--alpha", type=float, default=0.001, help="probability that a certificate is wrong (default: 0.001)"
    )
    parser.add_argument("--examples", type=int, default=200, help="how many test images (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=1024, help="noisy copies in a forward pass (default: 1024)")
    add_model_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all classes and radii to this file")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw certified accuracy over the radius")
    return parser.parse_known_args(argv)


def _certified(smoothing: "Smoothing", run: "Run", x: "Tensor") -> "Certificates":
    """Certify the images, with a bar that says how far it is."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task(f"certifying, {smoothing.n:,} samples an image", total=len(x))
        return smoothing.certify(run.model, x, progress=lambda done: bar.update(task, completed=done))


def _print(found: "Certificates", y: "Tensor", smoothing: "Smoothing") -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"sigma {smoothing.sigma:g}, {smoothing.n0:,} + {smoothing.n:,} samples, alpha {smoothing.alpha:g}"
    table = Table("l2 radius", "certified accuracy, 95 % interval", title=title)
    for step in range(ROWS):
        radius = step * smoothing.sigma / 2
        beyond = radius > smoothing.largest_radius
        table.add_row(f"{radius:g}", "more samples needed" if beyond else str(found.accuracy(y, radius)))
        if beyond:
            break
    Console(highlight=False).print(table)
    print(f"Clean accuracy of the smoothed classifier: {found.clean(y)}")
    print(f"Abstained from a certificate: {found.abstained()} of {len(y)} test images")


def _hint(run: "Run", sigma: float) -> None:
    """Say where a network has not learned the noise that it was smoothed with."""
    from lightning_paf.objectives.gaussian_noise import training_noise

    trained = training_noise(run.module.objective)
    if trained != sigma:
        noise = f"with noise of {trained:g}" if trained else "without noise"
        advice = f"--model.objective NoisyCE --model.objective.std {sigma:g}"
        print(f"Note: it was trained {noise} and smoothed with {sigma:g}. For this sigma, train with {advice}.")


def _write(options: argparse.Namespace, run: "Run", found: "Certificates", y: "Tensor", smoothing: "Smoothing") -> None:
    from dataclasses import asdict

    from lightning_paf.analysis.randomized_smoothing_figure import draw_certified
    from lightning_paf.utils.figures import save_figure
    from lightning_paf.utils.files import explained, write_whole

    if options.json:
        per_image = {name: getattr(found, name).tolist() for name in ("classes", "radii", "predictions")}
        content = {"checkpoint": str(run.checkpoint), **asdict(smoothing), "labels": y.tolist(), **per_image}
        with explained(options.json, "the file of --json"):
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_whole(options.json, (json.dumps(content) + "\n").encode())
    if options.figure:
        name = run.checkpoint.parent.parent.name
        headline = f"{name}, smoothed with sigma {smoothing.sigma:g}, {len(y)} test images"
        with explained(options.figure, "the file of --figure"):
            save_figure(draw_certified(found, y, smoothing, headline), options.figure)
