"""Figures of an experiment with activations, from a result of `report.content`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_paf.experiments.figure import DOT, look
from lightning_paf.utils.figures import BLUE, COLOURS, REFERENCE, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {"clean": "clean", "pgd": "PGD-20", "autoattack": "AutoAttack"}
_SMALL: dict[str, Any] = DOT | {"markersize": 6}


def accuracies(result: Mapping[str, Any]) -> "Figure":
    """Draw the shown metrics, with a row for each variant: all seeds and their mean.

    The dashed line is the mean of the first variant.
    """
    variants = result["variants"]
    headline = f"{result['method']}: {result['seeds']} seeds and their mean (line), eps {result['eps']:.3g}"
    with open_figure(8.5, 1.3 + 0.3 * len(variants), headline) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(result["shown"]), sharey=True))
        for axes, metric in zip(panels, result["shown"], strict=True):
            rows = [100 * np.array(values[metric]) for values in variants.values()]
            for row, dots in enumerate(rows):
                heights = row + 0.5 * (np.arange(len(dots)) + 0.5) / len(dots) - 0.25
                axes.plot(dots, heights, **_SMALL, marker="o", color=BLUE, zorder=3)
                axes.vlines(dots.mean(), row - 0.36, row + 0.36, color="black", linewidth=1.5, zorder=4)
            axes.axvline(rows[0].mean(), **REFERENCE, zorder=1)
            axes.set(xlabel=f"{_LABELS.get(metric, metric)} (%)", yticks=range(len(rows)), yticklabels=variants)
            axes.grid()
        panels[0].invert_yaxis()
    return figure


def parameters(result: Mapping[str, Any], variants: Sequence[str]) -> "Figure | None":
    """Draw alpha and |beta| after each epoch, with a line for each seed.

    None if no variant has either; a panel for those that a variant has.
    """
    histories = {variant: result["histories"].get(variant, ()) for variant in variants}
    recorded = {column for seeds in histories.values() for seed in seeds for column in seed}
    names = [name for name in ("alpha", "beta") if f"activation/{name}" in recorded]
    if not names:
        return None
    title = f"{result['method']}: learned parameters, {result['seeds']} seeds"
    with open_figure(4.25 * len(names), 3.6, title) as figure:
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            _lines(axes, histories, f"activation/{name}")
            axes.set(xlabel="epoch", ylabel=name if name == "alpha" else "|beta|")
            axes.grid()
            axes.locator_params("x", integer=True)
            axes.legend()
            if name == "alpha":
                axes.axhline(1, **REFERENCE)
                axes.annotate("start", (0, 1), (2, 3), xycoords=("axes fraction", "data"), textcoords="offset points")
            elif np.isfinite(axes.dataLim.minposy):
                axes.set_yscale("log")
    return figure


def _lines(axes: "Axes", histories: Mapping[str, Sequence[Mapping[str, Any]]], column: str) -> None:
    """Draw a column of the histories of each variant that has it."""
    for number, (variant, seeds) in enumerate(histories.items()):
        for seed, values in enumerate(history[column] for history in seeds if column in history):
            epochs = np.arange(1, len(values) + 1)
            label = None if seed else variant
            axes.plot(epochs, np.abs(values), color=COLOURS[number], linewidth=1.2, label=label)


def over_shape(result: Mapping[str, Any], families: Mapping[str, Sequence[str]]) -> "Figure | None":
    """Draw AutoAttack accuracy over curvature and mean output on negative inputs.

    None if fewer than two of the variants were measured.

    A family is a line through the means of its variants, with a dot for each seed, next to those of other families. A
    variant without a finite curvature is left out of the first panel. The dashed line is the mean of the first variant.
    """
    if len({variant for variants in families.values() for variant in variants} & result["variants"].keys()) < 2:
        return None
    with open_figure(8.5, 4.0, f"{result['method']}: constant shapes, {result['seeds']} seeds") as figure:
        panels = figure.subplots(1, 2, sharey=True)
        names = {"curvature": "max |f''|", "negative_mean": "E[f(X) | X < 0], X standard normal"}
        for axes, (quantity, label) in zip(panels, names.items(), strict=True):
            for number, variants in enumerate(families.values()):
                _family(axes, [result["variants"].get(variant) for variant in variants], quantity, number)
            name, first = next(iter(result["variants"].items()))
            axes.axhline(100 * np.mean(first["autoattack"]), **REFERENCE, label=name, zorder=1)
            axes.set_xlabel(label)
            axes.grid()
        panels[0].set_ylabel("AutoAttack accuracy (%)")
        if np.isfinite(panels[0].dataLim.minposx):
            panels[0].set_xscale("log")
        for number, family in enumerate(families):
            panels[1].plot([], [], **look(number), **DOT, label=family)
        panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _family(axes: "Axes", members: Sequence[Mapping[str, Any] | None], quantity: str, number: int) -> None:
    """Draw the members that were measured and have the quantity."""
    from matplotlib.transforms import ScaledTranslation

    found = [values for values in members if values and None not in values[quantity]]
    points = [(np.mean(values[quantity]), 100 * np.array(values["autoattack"])) for values in found]
    axes.plot([x for x, _ in points], [dots.mean() for _, dots in points], color=COLOURS[number], linewidth=1.2)
    aside = axes.transData + ScaledTranslation((number - 1) / 16, 0, axes.figure.dpi_scale_trans)
    for x, dots in points:
        column = np.stack([np.full(len(dots), x), dots], 1)
        axes.plot(*column.T, **look(number), **_SMALL, transform=aside)
        axes.update_datalim(column)  # which ignores lines with another transform
    axes.autoscale_view()
