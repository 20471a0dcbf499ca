"""Signs of masked gradients: PGD against other attacks (Tsilivis et al., 2022)."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.analysis.base import Load, Progress, Report, TrainedRun, json_file, percent, table
from lightning_paf.attacks import PGD, Attack, AutoAttack, Square
from lightning_paf.evaluation.checks import Context
from lightning_paf.evaluation.statistics import exact_accuracy
from lightning_paf.functional.losses import cross_entropy, margin
from lightning_paf.runs.config_file import run_of
from lightning_paf.types import Norm, Radius
from lightning_paf.utils.arguments import number, positive
from lightning_paf.utils.figures import COLOURS, figure_png, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = "+"

GAP = 0.1
"""Largest accuracy under PGD minus that under AutoAttack, without a flag."""

FLAT, MOST_FLAT = 1e-8, 0.2
"""l2 norm below which a gradient is flat, and largest fraction of such images."""

_WIDEST: Mapping[Norm, float] = {"linf": 1.0, "l2": 50.0}
"""Radius at which every image can become every other one."""


@dataclass(frozen=True)
class Masking:
    """Robust accuracy under several attacks, each on its own.

    Attributes:
        run: Name of the run.
        images: Number of evaluated images.
        robust: Number of robust images by attack; `clean` without one.
        flat: Fraction of images with a flat gradient of the cross-entropy.
        widest: Fraction of images robust to PGD-100 on the margin at the widest radius.
        flags: Signs of masked gradients, one sentence each.
    """

    run: str
    images: int
    robust: Mapping[str, int]
    flat: float
    widest: float
    flags: Sequence[str]


def attacks(eps: Radius, norm: Norm = "linf", queries: int = 1000) -> dict[str, Attack]:
    """The attacks on the model itself, by the name of their column.

    Args:
        eps: Radius.
        norm: `linf` or `l2`.
        queries: Queries of Square.
    """
    short, long = 2.5 * float(eps) / 20, 2.5 * float(eps) / 100
    return {
        "PGD-20": PGD(eps, step_size=short, steps=20, norm=norm),
        "PGD-100": PGD(eps, step_size=long, steps=100, norm=norm),
        "margin": PGD(eps, step_size=long, steps=100, norm=norm, loss=margin),
        "Square": Square(eps, norm=norm, queries=queries),
        "AutoAttack": AutoAttack(eps, norm=norm),
    }


def gradient_masking(
    context: Context, name: str = "", queries: int = 1000, surrogate: nn.Module | None = None
) -> Masking:
    """Attack a model in several ways, and look for signs of masked gradients.

    Args:
        context: Model, images and threat model.
        name: Name of the run.
        queries: Queries of Square.
        surrogate: Model of the same task, for transfer by PGD-100 on its margin.
    """
    chosen = attacks(context.eps, context.norm, queries)
    masks, classes = {"clean": context.correct}, context.clean_logits.shape[1]
    for column, attack in chosen.items():
        with context.isolated(column):
            masks[column] = context.robust_to(attack.for_classes(classes), context.correct)
    if surrogate is not None:
        with context.isolated("transfer"):
            masks["transfer"] = context.robust_to(chosen["margin"], context.correct, surrogate)
    with context.isolated("widest"):
        attack = context.pgd(steps=100, step=1 / 10, radius=_WIDEST[context.norm])
        widest = float(context.robust_to(attack, masks["margin"]).double().mean())
    norms = context.gradients(cross_entropy, context.model, context.x, context.y).flatten(1).norm(dim=1)
    flat = float((norms < FLAT).double().mean())
    robust = {column: int(mask.sum()) for column, mask in masks.items()}
    return Masking(name, len(context.y), robust, flat, widest, masking_flags(masks, flat, widest))


def masking_flags(robust: Mapping[str, Tensor], flat: float, widest: float) -> list[str]:
    """Signs of masked gradients, one sentence each.

    Args:
        robust: Robust images (n,) by attack, as in `Masking.robust`.
        flat: Fraction of images with a flat gradient.
        widest: Fraction of images that are robust at the widest radius.
    """
    pgd = robust["PGD-20"] & robust["PGD-100"]
    found = list[str]()
    if (gap := float(pgd.double().mean() - robust["AutoAttack"].double().mean())) > GAP:
        found.append(f"AutoAttack is {100 * gap:.1f} points below PGD on cross-entropy.")
    more = {column: int(pgd.sum() - robust[column].sum()) for column in ("Square", "transfer") if column in robust}
    found += [f"{column} fools {images} images more than PGD." for column, images in more.items() if images > 0]
    if flat > MOST_FLAT:
        found.append(f"{percent(flat)} of the images have a gradient below {FLAT:g}.")
    if widest > 0:
        found.append(f"{percent(widest)} of the images are robust at the widest radius.")
    return found


def draw(found: Sequence[Masking]) -> "Figure":
    """Draw the accuracy of each run under each attack, with 95 % intervals."""
    columns, width = list(found[0].robust), 0.8 / len(found)
    with open_figure(8, 4, "Robust accuracy under each attack alone") as figure:
        axes = figure.subplots()
        for index, (one, colour) in enumerate(zip(found, COLOURS * len(found), strict=False)):
            bars = [exact_accuracy(one.robust[column], one.images) for column in columns]
            values = 100 * np.array([bar.value for bar in bars])
            ends = 100 * np.array([[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]])
            places = np.arange(len(columns)) + (index - (len(found) - 1) / 2) * width
            axes.bar(places, values, width, yerr=ends, color=colour, label=one.run, ecolor="black", capsize=2)
        axes.set(xticks=range(len(columns)), xticklabels=columns, ylabel="accuracy (%)", ylim=(0, 100))
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze gradient-masking`."""
    parser.add_argument("--eps", type=number(Fraction, above=0), help="e.g. 8/255; default: that of the training")
    parser.add_argument("--examples", type=number(int, least=20), default=200, help="number of test images")
    parser.add_argument("--queries", type=positive, default=1000, help="queries of Square")
    parser.add_argument("--surrogate", type=Path, help="checkpoint of a run without attacks, for transfer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the accuracies")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Attack the test images of each run; fail if there is a flag."""
    runs = [load(checkpoint) for checkpoint in options.ckpt]
    surrogate = load(options.surrogate).model if options.surrogate else None
    contexts = [_context(run, options) for run in runs]
    found = []
    for checkpoint, context in zip(options.ckpt, contexts, strict=True):
        progress(f"attacks on {checkpoint}")
        found.append(gradient_masking(context, run_of(checkpoint).name, options.queries, surrogate))
    rows = [[f"{100 * count / one.images:.1f}" for count in one.robust.values()] for one in found]
    lines = [f"Accuracy in % on {found[0].images} images, each attack alone:"]
    lines += table(("run", *found[0].robust), *((one.run, *row) for one, row in zip(found, rows, strict=True)))
    lines += [f"{one.run}: {flag}" for one in found for flag in one.flags]
    lines += [] if any(one.flags for one in found) else ["No sign of masked gradients, which proves no robustness."]
    files = {options.figure: figure_png(draw(found))} if options.figure else {}
    files |= {options.json: json_file([asdict(one) for one in found])} if options.json else {}
    return Report(lines, files, not any(one.flags for one in found))


def _context(run: TrainedRun, options: argparse.Namespace) -> Context:
    samples = run.samples(options.examples)
    with torch.no_grad():
        x, y = samples.fetch(samples.ids)
    attack = run.module.attack
    return Context(run.model, x, y, options.eps or attack.eps, attack.norm, options.seed)
