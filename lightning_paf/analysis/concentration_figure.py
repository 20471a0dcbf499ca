"""Pictures of loss distributions over random starts."""

from typing import TYPE_CHECKING

from lightning_paf.analysis.concentration import Concentration, spread_text
from lightning_paf.utils.figures import BLUE, REFERENCE, open_figure

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
        The figure, for `utils.figures.save_figure`.
    """
    from matplotlib.ticker import MaxNLocator

    shown = min(MOST, found.losses.shape[1])
    with open_figure(2.6 * shown + 0.6, 3.2, headline) as figure:
        for image, axes in enumerate(figure.subplots(1, shown, squeeze=False, sharey=True)[0]):
            losses, clean = found.losses[:, image].cpu().numpy(), float(found.clean[image])
            end = 1.1 * max(float(losses.max()), clean) or 1.0
            axes.hist(losses, bins=BINS, range=(0, end), color=BLUE)
            axes.axvline(clean, **REFERENCE)
            axes.set_title(f"image {image}, spread {spread_text(float(found.spread[image]))}", fontsize="small")
            axes.set(xlabel="loss", xlim=(0, end))
            axes.xaxis.set_major_locator(MaxNLocator(3))
        figure.axes[0].set_ylabel("starts")
    return figure
