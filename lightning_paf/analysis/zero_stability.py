"""Zero stability of three-step residual networks (Chen et al., 2022)."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lightning_paf.analysis.base import Load, Progress, Report, TrainedRun, json_file, percent, table
from lightning_paf.functional.corruptions import CORRUPTIONS
from lightning_paf.functional.multistep import OPTIMAL, is_zero_stable, root_moduli, three_step_family
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nets.zerosnet import ZeroSNet
from lightning_paf.runs.config_file import run_of
from lightning_paf.utils.arguments import number, positive
from lightning_paf.utils.figures import BLUE, REFERENCE, VERMILION, figure_png, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = "*"

SHOWN = (-3.0, OPTIMAL, -1.0, -0.5, 1 / 3, 0.5, 1.0, 3.0)
"""Parameters of the family in the table."""

AT_ONCE = 512
"""Images evaluated at once."""


@dataclass(frozen=True)
class StabilityPoint:
    """Zero stability and accuracies of a trained network.

    Attributes:
        name: Name of its run.
        modulus: Largest modulus of an extraneous root, the largest of all blocks.
        stable: Whether all blocks are zero-stable.
        accuracy: Fraction of images classified correctly: `clean`, and by corruption.
    """

    name: str
    modulus: float
    stable: bool
    accuracy: Mapping[str, float]


def noise_robustness(run: TrainedRun, level: float, examples: int | None = None, seed: int = 0) -> dict[str, float]:
    """Accuracy on clean test images and on those of each corruption.

    Args:
        run: A trained run.
        level: Size of the corruptions, for pixels in [0, 1].
        examples: Number of test images; null for all.
        seed: Seed of the noise.
    """
    samples = run.samples(examples)
    correct = dict.fromkeys(["clean", *CORRUPTIONS], 0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for ids in np.array_split(samples.ids, -(-len(samples) // AT_ONCE)):
            x, y = samples.fetch(ids)
            for name in correct:
                z = CORRUPTIONS[name](x, level) if name in CORRUPTIONS else x
                correct[name] += int((~misclassified(run.model(z), y)).sum())
    return {name: count / len(samples) for name, count in correct.items()}


def draw_region() -> "Figure":
    """Draw the largest extraneous root of the family over its parameter."""
    grid = np.concatenate([np.linspace(-5, -0.02, 400), np.linspace(0.02, 5, 400)])
    moduli = [root_moduli(three_step_family(float(p)))[0] for p in grid]
    with open_figure(6.4, 4, "Zero stability of the three-step family") as figure:
        axes = figure.subplots()
        axes.axvspan(-5, -1, color=BLUE, alpha=0.1, linewidth=0, label="zero-stable")
        axes.axvspan(1 / 3, 5, color=BLUE, alpha=0.1, linewidth=0)
        axes.axhline(1, **REFERENCE)
        for side in (grid < 0, grid > 0):
            axes.plot(grid[side], np.array(moduli)[side], color=BLUE)
        axes.plot([OPTIMAL], [root_moduli(three_step_family(OPTIMAL))[0]], "o", color=VERMILION, label="optimum -9/5")
        axes.set(xlabel="parameter", ylabel="largest modulus of an extraneous root", xlim=(-5, 5), ylim=(0, 3))
        axes.legend()
    return figure


def draw_accuracy_over_root(points: Sequence[StabilityPoint]) -> "Figure":
    """Draw accuracies of trained networks over their largest extraneous root."""
    ordered = sorted(points, key=lambda point: point.modulus)
    with open_figure(6.4, 4, "Accuracy over the largest extraneous root") as figure:
        axes = figure.subplots()
        for name, marker in zip(points[0].accuracy, "osD^", strict=False):
            values = [100 * point.accuracy[name] for point in ordered]
            axes.plot([point.modulus for point in ordered], values, marker, label=name)
        axes.axvline(1, **REFERENCE)
        axes.set(xlabel="largest modulus of an extraneous root", ylabel="accuracy (%)", ylim=(0, 100))
        axes.legend()
        axes.grid()
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze zero-stability`."""
    parser.add_argument("--level", type=number(float, least=0), default=0.1, help="size of the corruptions, e.g. 0.1")
    parser.add_argument("--examples", type=positive, help="number of test images (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw accuracies, or the region without --ckpt")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Evaluate runs of ZeroSNet, or describe the family if there are none."""
    if not options.ckpt:
        return _describe_family(options)
    runs = [load(checkpoint) for checkpoint in options.ckpt]
    nets = [_zerosnet(run) for run in runs]
    points = []
    for checkpoint, run, net in zip(options.ckpt, runs, nets, strict=True):
        progress(f"accuracies of {checkpoint}")
        coefficients = net.coefficients()
        modulus = max(float(root_moduli(one)[0]) for one in coefficients)
        accuracy = noise_robustness(run, options.level, options.examples, options.seed)
        points.append(
            StabilityPoint(run_of(checkpoint).name, modulus, all(map(is_zero_stable, coefficients)), accuracy)
        )
    lines = table(
        ("run", "root", "zero-stable", *points[0].accuracy),
        *((p.name, f"{p.modulus:.4f}", _yes(p.stable), *map(percent, p.accuracy.values())) for p in points),
    )
    return Report(lines, _files(options, [asdict(point) for point in points], draw_accuracy_over_root(points)))


def _describe_family(options: argparse.Namespace) -> Report:
    """Coefficients and largest roots of members of the family, and its region."""
    family = {parameter: three_step_family(parameter) for parameter in SHOWN}
    moduli = {parameter: float(root_moduli(coefficients)[0]) for parameter, coefficients in family.items()}
    lines = table(
        ("parameter", "a0", "a1", "a2", "b0", "root", "zero-stable"),
        *(
            (f"{p:.4g}", *(f"{c + 0.0:.4f}" for c in family[p]), f"{moduli[p]:.4f}", _yes(is_zero_stable(family[p])))
            for p in family
        ),
    )
    content = [{"parameter": p, "coefficients": family[p], "modulus": moduli[p]} for p in family]
    return Report(lines, _files(options, content, draw_region()))


def _files(options: argparse.Namespace, content: object, figure: "Figure") -> dict[Path, bytes]:
    files = {options.figure: figure_png(figure)} if options.figure else {}
    return files | ({options.json: json_file(content)} if options.json else {})


def _zerosnet(run: TrainedRun) -> ZeroSNet:
    """The ZeroSNet of a run."""
    for module in run.model.modules():
        if isinstance(module, ZeroSNet):
            return module
    raise ValueError(f"The network must be a ZeroSNet, got {type(run.model.net).__name__}. Pass --ckpt of another run.")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
