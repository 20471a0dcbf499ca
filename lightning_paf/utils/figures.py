"""Figures without pyplot: one style, accessible colours, atomic files."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightning_paf.utils.files import write_whole

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

BLUE, VERMILION, WINE, GREY, LIGHT_GREY = "#0072b2", "#d55e00", "#882255", "#5e5c64", "#9a9996"
COLOURS = (BLUE, VERMILION, "#56b4e9", WINE, "#e69f00", "#000000", "#009e73", GREY)
"""Colours of series, mostly of Okabe and Ito (2008).

The first six can be distinguished with all kinds of colour blindness.
"""

REFERENCE: Mapping[str, Any] = {"color": GREY, "linestyle": "--", "linewidth": 1.2}
"""Style of a line at a reference value."""

_STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}


class Interval(Protocol):
    """A fraction in [0, 1] with its confidence interval."""

    @property
    def value(self) -> float:
        """Estimate in [0, 1]."""

    @property
    def low(self) -> float:
        """Lower end in [0, 1]."""

    @property
    def high(self) -> float:
        """Upper end in [0, 1]."""


@contextmanager
def open_figure(width: float, height: float, headline: str = "") -> "Iterator[Figure]":
    """Open a figure on an Agg canvas, in the style of the package.

    It ignores pyplot's state and the user's `matplotlibrc`, and restores all settings of matplotlib.

    Args:
        width: In inches.
        height: In inches.
        headline: Title above all panels.

    Yields:
        The figure, for `save_figure` or `figure_png`.
    """
    from cycler import cycler
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(_STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}, after_reset=True):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        if headline:
            figure.suptitle(headline)
        yield figure


def figure_png(figure: "Figure") -> bytes:
    """Render a figure as the content of a PNG file."""
    from matplotlib import style

    stream = io.BytesIO()
    with style.context(_STYLE, after_reset=True):
        figure.savefig(stream, format="png")
    return stream.getvalue()


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG file, atomically, and create its folder if needed.

    Raises:
        OSError: The file cannot be written.
    """
    content = figure_png(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def sheet_png(tiles: "NDArray[np.floating[Any]]", width: int = 960) -> bytes:
    """Render rows of small images as the content of a PNG file, without smoothing.

    Args:
        tiles: Images (rows, columns, H, W, C) in [0, 1], with 1 or 3 channels.
        width: Pixels of the picture, approximately; larger images keep their size.
    """
    import numpy as np
    from matplotlib.image import imsave

    zoom = max(1, width // (tiles.shape[1] * tiles.shape[3]))
    zoomed = tiles.repeat(zoom, axis=2).repeat(zoom, axis=3)
    framed = np.pad(zoomed, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), constant_values=1)
    sheet = np.concatenate(np.concatenate(list(framed), axis=1), axis=1)
    stream = io.BytesIO()
    imsave(stream, np.broadcast_to(sheet, (*sheet.shape[:2], 3)), format="png")
    return stream.getvalue()


def draw_accuracy(
    axes: "Axes", x: Sequence[float], accuracies: Sequence[Interval], label: str, unit: str, **style: Any
) -> None:
    """Draw accuracy in percent over x, with its pointwise 95 % interval as a band.

    Args:
        axes: Target; its axes get labels and limits.
        x: Ascending values (N,).
        accuracies: In [0, 1], (N,).
        label: Legend entry of the line.
        unit: Label of the x axis, with its unit.
        style: Options of `Axes.plot`.
    """
    low, high, value = ([100 * getattr(accuracy, end) for accuracy in accuracies] for end in ("low", "high", "value"))
    axes.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95 % interval (pointwise)")
    axes.plot(x, value, color=BLUE, label=label, **style)
    axes.set(xlabel=unit, ylabel="accuracy (%)", ylim=(0, 100))
    axes.grid()


def draw_percent(
    figure: "Figure", values: Any, ticks: tuple[Sequence[str], Sequence[str]], labels: tuple[str, str], unit: str
) -> None:
    """Draw fractions (R, C) in percent as coloured cells; NaN is left white.

    Args:
        figure: Target; it gets one panel and a colour bar.
        values: Array of fractions in [0, 1].
        ticks: Names of the rows and of the columns.
        labels: Labels of the rows and of the columns.
        unit: Label of the colour bar.
    """
    axes, (rows, columns) = figure.add_subplot(), ticks
    shown = axes.imshow(100 * values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(ylabel=labels[0], xlabel=labels[1])
    for row, column in [(row, column) for row in range(len(rows)) for column in range(len(columns))]:
        value = values[row, column]
        if len(columns) <= 20 and value == value:  # not NaN
            colour = "white" if value < 0.6 else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize="small")
    figure.colorbar(shown, label=unit)


def show_image(axes: "Axes", image: Any, title: str = "", **style: Any) -> None:
    """Draw an array (H, W) or (H, W, 3) without ticks.

    `style` are options of `Axes.imshow`.
    """
    axes.imshow(image, **style)
    axes.set_title(title, fontsize="small")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
