"""Pictures of loss distributions over random starts."""

from typing import TYPE_CHECKING

from lightning_paf.evaluation.concentration import Concentration, spread_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 5
"""Images that get a histogram each, as in figure 2 of Madry et al. (2018)."""

BINS = 40
"""Of the axis from 0 to beyond the largest loss, not of the losses: bars stay wide where all losses agree."""


def draw_concentration(found: Concentration, headline: str) -> "Figure":
    """Draw one histogram of final losses for each of the first images; the line is the loss of the clean image.

    Each image has an axis of its own that begins at 0, so that the width of a histogram is the spread.

    Args:
        found: What to draw.
        headline: Title of the figure.

    Returns:
        A figure on an Agg canvas; save it with `figure.savefig(path)`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = min(MOST, found.losses.shape[1])
    figure = Figure(figsize=(2.6 * shown + 0.6, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for image, axes in enumerate(figure.subplots(1, shown, squeeze=False, sharey=True)[0]):
        losses, clean = found.losses[:, image].cpu().numpy(), float(found.clean[image])
        end = 1.1 * max(float(losses.max()), clean) or 1.0
        axes.hist(losses, bins=BINS, range=(0, end), color="#1a5fb4")
        axes.axvline(clean, color="#5e5c64", linestyle="--", linewidth=1.2)
        axes.set_title(f"image {image}, spread {spread_text(float(found.spread[image]))}", fontsize="small")
        axes.set_xlabel("loss")
        axes.set_xlim(0, end)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("starts")
    figure.suptitle(headline)
    return figure
