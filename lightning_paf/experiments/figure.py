"""Figure of an experiment: AutoAttack over clean accuracy, or chosen metrics."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.utils.figures import COLOURS, GREY, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"
"""Markers of the variants, for readers who cannot distinguish the colours."""

_SIZE = 8
DOT: dict[str, Any] = {"markersize": _SIZE, "markeredgecolor": "white", "markeredgewidth": 0.8, "linewidth": 0}
_MEAN: dict[str, Any] = {"markersize": 16, "markerfacecolor": "none", "markeredgewidth": 1.2, "linewidth": 0}


def draw(result: Mapping[str, Any]) -> "Figure":
    """Draw each seed and the mean of each variant, from a result of `report.content`.

    If its experiment names metrics to show, there is a group of dots for each; otherwise AutoAttack accuracy is drawn
    over clean accuracy.
    """
    groups, variants = len(result["shown"]), len(result["variants"])
    width = max(6.4, 1.8 + groups * max(1.2, 0.3 * variants))
    with open_figure(width, 4.2) as figure:
        axes = figure.subplots()
        for number, variant in enumerate(result["variants"]):
            axes.plot([], [], **look(number), **DOT, label=variant)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        (_groups if groups else _scatter)(axes, result)
    return figure


def look(number: int) -> dict[str, Any]:
    """Marker and colour of a variant."""
    return {"marker": MARKERS[number % len(MARKERS)], "color": COLOURS[number % len(COLOURS)]}


def _scatter(axes: "Axes", result: Mapping[str, Any]) -> None:
    """Robust over clean accuracy; an outline is the mean of a variant."""
    axes.set_xlabel("clean accuracy (%); overlapping dots are moved apart")
    axes.set_ylabel(f"AutoAttack accuracy at eps {result['eps']:g} (%)")
    axes.grid()
    axes.set_title(
        f"{result['method']}: {result['seeds']} seeds, their mean (outline), {result['examples']} test images"
    )
    variants = [100 * np.array([values["clean"], values["autoattack"]]).T for values in result["variants"].values()]
    for number, dots in enumerate(variants):
        axes.plot(*dots.mean(0), **look(number), **_MEAN, zorder=1)
    axes.margins(0.08)
    axes.update_datalim(np.concatenate(variants))
    axes.autoscale_view()
    looks = [look(number) for number, dots in enumerate(variants) for _ in dots]
    _side_by_side(axes, np.concatenate(variants), looks)


def _side_by_side(axes: "Axes", dots: NDArray[np.float64], looks: list[dict[str, Any]]) -> None:
    """Draw dots (n, 2), shifted horizontally where they overlap, with fixed limits."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # lays the axes out
    points = axes.transData.transform(dots) * 72 / figure.dpi
    steps = [0] + [side * step for step in range(1, len(dots)) for side in (1, -1)]
    for number, style in enumerate(looks):
        aside = next(
            _SIZE * step
            for step in steps
            if (np.linalg.norm(points[:number] - points[number] - (_SIZE * step, 0), axis=1) > 0.95 * _SIZE).all()
        )
        points[number, 0] += aside
        shift = ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
        axes.plot(*dots[number], **style, **DOT, transform=axes.transData + shift, zorder=3, clip_on=False)


def _groups(axes: "Axes", result: Mapping[str, Any]) -> None:
    """Draw one group per metric, with a column per variant: seeds and mean (line)."""
    names, variants = result["shown"], result["variants"]
    plain = names[0] in result["plain"]  # as then all are
    column = 0.84 / len(variants)
    half = 0.45 * min(column, 0.4)
    for number, values in enumerate(variants.values()):
        for group, name in enumerate(names):
            dots = (1 if plain else 100) * np.array(values[name])
            middle = group + (number - (len(variants) - 1) / 2) * column
            x = np.linspace(middle - half, middle + half, 2 * len(dots) + 1)[1::2]
            axes.plot(x, dots, **look(number), **DOT | {"markersize": 7}, zorder=3)
            axes.hlines(dots.mean(), middle - half, middle + half, color=COLOURS[number % len(COLOURS)], linewidth=1.5)
    for border in range(1, len(names)):
        axes.axvline(border - 0.5, color=GREY, linewidth=0.5, alpha=0.5)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(result.get("unit", "as measured") if plain else "fraction of images (%)")
    axes.grid(axis="y")
    axes.set_title(f"{result['method']}: {result['seeds']} seeds and their mean (line)")
