"""Success rate of a targeted attack for every pair of true class and target."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_paf.analysis.base import Load, Progress, Report, add_folder, folder_files, table
from lightning_paf.attacks import APGD, FAB, PGD, Attack, Square, radius_text
from lightning_paf.evaluation import Evaluation, EvaluationResult
from lightning_paf.runs.config_file import run_of
from lightning_paf.types import Norm, Radius
from lightning_paf.utils.arguments import number, positive
from lightning_paf.utils.figures import draw_percent, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = 1


def _pgd(eps: Radius, norm: Norm, target: int) -> PGD:
    return PGD(eps, norm=norm, step_size=Fraction(eps) / 10, steps=50, target=target)


ATTACKS: Mapping[str, Callable[..., Attack]] = MappingProxyType(
    {"pgd": _pgd, "apgd": APGD, "fab": FAB, "square": partial(Square, queries=1000)}
)
"""Maps eps, `norm` and `target` to an attack."""


def counts_of(results: Sequence[EvaluationResult], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Attacked and fooled samples (K, K), by true class (rows) and target."""
    attacked, fooled = np.zeros((2, classes, classes), np.int64)
    for row in (row for result in results for row in result.per_pair()):
        attacked[row.label, row.target] += row.attacked
        fooled[row.label, row.target] += row.fooled
    return attacked, fooled


def draw_rates(rates: NDArray[np.float64], names: Sequence[str], headline: str) -> "Figure":
    """Draw success rates (K, K) by true class (rows) and target."""
    side = max(4.5, 0.5 * len(names) + 2)
    with open_figure(side + 1, side, headline) as figure:
        draw_percent(figure, rates, (names, names), ("true class", "target"), "classified as the target (%)")
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze targets`."""
    parser.add_argument("--attack", choices=[*ATTACKS], default="apgd", help="default: apgd, 100 steps")
    parser.add_argument("--eps", type=number(Fraction, above=0), help="e.g. 8/255; default: that of the training")
    parser.add_argument("--examples", type=positive, default=500, help="number of test images (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the attack")
    add_folder(parser, "targets")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Attack the test images towards each class in turn."""
    (checkpoint,) = options.ckpt
    run = load(checkpoint)
    training, classes, samples = run.module.attack, run.model.num_classes, run.samples(options.examples)
    eps, results = options.eps or training.eps, []
    names = run.datamodule.spec.class_names or [str(label) for label in range(classes)]
    for target in range(classes):
        progress(f"attacks towards {names[target]}, {target + 1} of {classes}")
        attack = ATTACKS[options.attack](eps, norm=training.norm, target=target)
        results.append(Evaluation(run.model, attack, samples, options.seed).run())
    attacked, fooled = counts_of(results, classes)
    rates = np.divide(fooled, attacked, out=np.full(attacked.shape, np.nan), where=attacked > 0)
    threat = f"{options.attack}, {training.norm}, eps {radius_text(eps)}"
    found = f"{fooled.sum()} of {attacked.sum()}"
    lines = [f"Attacks towards each class ({threat}): {found} reached the target."]
    lines += _table(rates, names) if classes <= 12 else _easiest(rates, names)
    content = {
        "attack": {**results[0].attack, "target": "each class"},
        "class_names": list(names),
        "attacked": attacked.tolist(),
        "fooled": fooled.tolist(),
    }
    figure = draw_rates(rates, names, f"{run_of(checkpoint).name}: {threat}")
    return Report(lines, folder_files("targets", options.out, checkpoint, content, figure))


def _table(rates: NDArray[np.float64], names: Sequence[str]) -> list[str]:
    """Lines with all rates."""
    rows = (
        (
            f"{label} {names[label][:12]}" if names[label] != str(label) else str(label),
            *("–" if np.isnan(rate) else f"{100 * rate:.0f}" for rate in row),
        )
        for label, row in enumerate(rates)
    )
    head = ("class", *map(str, range(len(rates))))
    return ["Success rate in %: true class (rows) and target (columns)", *table(head, *rows)]


def _easiest(rates: NDArray[np.float64], names: Sequence[str], count: int = 10) -> list[str]:
    """Lines with the largest rates."""
    order = np.argsort(-np.nan_to_num(rates, nan=-1.0), axis=None, kind="stable")[:count]
    pairs = (divmod(int(index), len(rates)) for index in order)
    rows = ((names[label][:30], names[goal][:30], f"{100 * rates[label, goal]:.0f} %") for label, goal in pairs)
    return [f"Largest success rates of {rates.size - len(rates)} pairs", *table(("class", "target", "rate"), *rows)]
