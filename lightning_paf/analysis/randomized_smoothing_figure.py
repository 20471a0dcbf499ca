"""A picture of certified accuracy."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lightning_paf.analysis.randomized_smoothing import Certificates, Smoothing
from lightning_paf.utils.figures import BLUE, REFERENCE, draw_accuracy, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 400


def draw_certified(found: Certificates, y: Tensor, smoothing: Smoothing, headline: str) -> "Figure":
    """Draw certified accuracy over the radius with its 95 % intervals.

    Args:
        found: What to draw.
        y: Labels (N,).
        smoothing: What found it; the largest radius that its number of samples can certify is marked.
        headline: Title of the figure.

    Returns:
        The figure, for `utils.figures.save_figure`.
    """
    end, clean = 1.08 * smoothing.largest_radius, found.clean(y)
    radii = np.linspace(0, end, _POINTS).tolist()
    accuracies = [found.accuracy(y, radius) for radius in radii]
    with open_figure(7.2, 4.8, headline) as figure:
        axes = figure.add_subplot()
        draw_accuracy(axes, radii, accuracies, "certified accuracy", "radius (l2, pixels in [0, 1])")
        label = f"clean accuracy when smoothed, {100 * clean.value:.1f} %"
        axes.plot([0], [100 * clean.value], "D", color=BLUE, markersize=8, clip_on=False, label=label)
        label = f"most that {smoothing.n:,} samples can certify"
        axes.axvline(smoothing.largest_radius, **REFERENCE, label=label)
        axes.set_xlim(0, end)
        axes.legend()
    return figure
