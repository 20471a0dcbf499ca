"""A picture of certified accuracy."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lightning_paf.evaluation.smoothing import Certificates, Smoothing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE, LIMIT = "#1a5fb4", "#5e5c64"
_POINTS = 400


def draw_certified(found: Certificates, y: Tensor, smoothing: Smoothing, headline: str) -> "Figure":
    """Draw certified accuracy over the radius with its 95 % intervals.

    Args:
        found: What to draw.
        y: Labels (N,).
        smoothing: What found it; the largest radius that its number of samples can certify is marked.
        headline: Title of the figure.

    Returns:
        A figure on an Agg canvas, outside pyplot's global state; save it with `figure.savefig(path)`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    end, clean = 1.08 * smoothing.largest_radius, found.clean(y)
    radii = np.linspace(0, end, _POINTS)
    accuracies = [found.accuracy(y, radius) for radius in radii]
    low, high = ([100 * getattr(accuracy, side) for accuracy in accuracies] for side in ("low", "high"))
    axes.fill_between(radii, low, high, color=CURVE, alpha=0.18, linewidth=0, label="95 % interval (pointwise)")
    axes.plot(radii, [100 * a.value for a in accuracies], color=CURVE, linewidth=2, label="certified accuracy")
    label = f"clean accuracy when smoothed, {100 * clean.value:.1f} %"
    axes.plot([0], [100 * clean.value], "D", color=CURVE, markersize=8, clip_on=False, label=label)
    label = f"most that {smoothing.n:,} samples can certify"
    axes.axvline(smoothing.largest_radius, color=LIMIT, linestyle="--", linewidth=1.2, label=label)
    axes.set_xlabel("radius (l2)")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.set_xlim(0, end)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False)
    figure.suptitle(headline)
    return figure
