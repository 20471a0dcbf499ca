"""Certify robustness: linear bounds of margins, or randomised smoothing."""

import argparse
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.utils.arguments import command_parser, number, positive

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.analysis.randomized_smoothing import Certificates, Smoothing

_METHODS = (
    "ibp, crown-ibp, crown or alpha-crown bound the margins, each one tighter and slower than the one before; "
    "smoothing certifies the network under Gaussian noise (default: smoothing with --sigma, otherwise crown)"
)
ROWS = 8
"""Radii in the table, from 0 in steps of sigma / 2."""


def main(argv: list[str]) -> int:
    """Certify, print a table, and write the files."""
    options, rest = _parse(argv)
    return (_margins if options.sigma is None else _smoothing)(options, rest)


def _margins(options: argparse.Namespace, rest: list[str]) -> int:
    """Certify a norm ball around each image by bounds of the margins."""
    from rich.console import Console
    from rich.progress import Progress

    from lightning_paf.analysis.certified_margins import Threat, certified_report
    from lightning_paf.cli.evaluated_checkpoint import checkpoint_of
    from lightning_paf.commands.analyze import finish
    from lightning_paf.loading import load_run
    from lightning_paf.runs.config_file import run_of

    checkpoint = checkpoint_of(options.run)
    run, folder = load_run(checkpoint, options.config, options.device, rest), run_of(checkpoint)
    trained = run.module.attack
    threat = Threat(options.eps or trained.eps, options.norm or trained.norm, options.method)
    samples = run.samples(options.examples)
    x, y = samples.fetch(samples.ids)
    with Progress(console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task(f"certifying by {threat.method}", total=len(x))
        out = options.json or folder / f"{threat.stem}.json"
        report = certified_report(
            run.model, x, y, threat, folder / "test", out, progress=lambda done: bar.update(task, completed=done)
        )
    return finish(report)


def _smoothing(options: argparse.Namespace, rest: list[str]) -> int:
    """Certify l2 radii of the classifier smoothed with Gaussian noise."""
    from rich.console import Console
    from rich.progress import Progress

    from lightning_paf.analysis.base import Report, json_file
    from lightning_paf.analysis.randomized_smoothing import Smoothing, draw_certified
    from lightning_paf.cli.evaluated_checkpoint import checkpoint_of
    from lightning_paf.commands.analyze import finish
    from lightning_paf.loading import load_run
    from lightning_paf.objectives.gaussian_noise import training_noise
    from lightning_paf.runs.config_file import run_of
    from lightning_paf.utils.figures import figure_png

    n0, n = options.samples
    smoothing = Smoothing(options.sigma, n0, n, options.alpha, options.seed, options.batch_size)
    checkpoint = checkpoint_of(options.run)
    run = load_run(checkpoint, options.config, options.device, rest)
    samples = run.samples(options.examples)
    x, y = samples.fetch(samples.ids)
    with Progress(console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task(f"certifying, {smoothing.n:,} samples an image", total=len(x))
        found = smoothing.certify(run.model, x, progress=lambda done: bar.update(task, completed=done))
    files = {}
    if options.json:
        per_image = {name: getattr(found, name).tolist() for name in ("classes", "radii", "predictions")}
        content = {"checkpoint": str(checkpoint), **asdict(smoothing), "labels": y.tolist(), **per_image}
        content["flags"] = dict(found.flags)
        files[options.json] = json_file(content)
    if options.figure:
        headline = f"{run_of(checkpoint).name}, smoothed with sigma {smoothing.sigma:g}, {len(y)} test images"
        files[options.figure] = figure_png(draw_certified(found, y, smoothing, headline))
    lines = [*_lines(found, y, smoothing), *_hint(training_noise(run.module.objective), smoothing.sigma)]
    return finish(Report(lines, files))


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_model_arguments

    parser = command_parser("certify", __doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder (its newest checkpoint), or a checkpoint")
    add("--method", choices=("ibp", "crown-ibp", "crown", "alpha-crown", "smoothing"), metavar="METHOD", help=_METHODS)
    add("--eps", type=number(Fraction, above=0), help="radius, e.g. 8/255; not for smoothing (default: training's)")
    add("--norm", choices=("linf", "l2"), help="norm of eps; smoothing is about l2 (default: training's)")
    add("--sigma", type=float, help="standard deviation of the noise, pixels in [0, 1]; only for smoothing")
    add(
        "--samples",
        type=int,
        nargs=2,
        default=(100, 10_000),
        metavar=("N0", "N"),
        help="noisy copies of an image that select a class, and that bound its probability (default: 100 10000)",
    )
    add("--alpha", type=float, default=0.001, help="probability that a certificate is wrong (default: 0.001)")
    add("--examples", type=positive, default=200, help="number of test images (default: 200)")
    add("--seed", type=int, default=0, help="seed of the noise")
    add("--batch_size", type=int, default=1024, help="noisy copies in a forward pass (default: 1024)")
    add_model_arguments(parser)
    add("--json", type=Path, metavar="FILE", help="file of all results (default: in the run; none for smoothing)")
    add("--figure", type=Path, metavar="PNG", help="draw certified accuracy over the radius (smoothing)")
    options, rest = parser.parse_known_args(argv)
    smoothing = (options.method or ("crown" if options.sigma is None else "smoothing")) == "smoothing"
    if smoothing != (options.sigma is not None):
        parser.error("--sigma must be given for smoothing, and only for it. Pass --method smoothing --sigma 0.25")
    if smoothing and (options.eps is not None or options.norm == "linf"):
        parser.error("--eps and --norm linf must not be given for smoothing, which certifies an l2 radius per image")
    if not smoothing and options.figure is not None:
        parser.error("--figure must be given with --method smoothing only. Leave it out")
    options.method = options.method or "crown"
    return options, rest


def _lines(found: "Certificates", y: "Tensor", smoothing: "Smoothing") -> list[str]:
    from lightning_paf.analysis.base import table

    rows = [("l2 radius", "certified accuracy, 95 % interval")]
    for radius in (step * smoothing.sigma / 2 for step in range(ROWS)):
        if radius > smoothing.largest_radius:
            rows.append((f"{radius:g}", "more samples needed"))
            break
        rows.append((f"{radius:g}", str(found.accuracy(y, radius))))
    return [
        f"sigma {smoothing.sigma:g}, {smoothing.n0:,} + {smoothing.n:,} samples, alpha {smoothing.alpha:g}",
        *table(*rows),
        f"Clean accuracy of the smoothed classifier: {found.clean(y)}",
        f"Abstained from a certificate: {found.abstained()} of {len(y)} test images",
        *(f"Flag {name}: {text}" for name, text in found.flags.items()),
    ]


def _hint(trained: float, sigma: float) -> list[str]:
    """Note on other noise in the training than in the smoothing."""
    if trained == sigma:
        return []
    noise = f"with noise of {trained:g}" if trained else "without noise"
    return [
        f"Note: the configuration trains {noise}, but the network was smoothed with {sigma:g}.",
        f"For this sigma, train with --model.objective NoisyCE --model.objective.std {sigma:g}.",
    ]
