"""Pictures of loss distributions over random starts."""

from typing import TYPE_CHECKING

from lightning_paf.evaluation.concentration import Concentration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 5
"""Images that get a histogram each, as in figure 2 of Madry et al. (2018)."""


def draw_concentration(found: Concentration, headline: str) -> "Figure":
    """Draw one histogram of final losses for each of the first images; the line is the loss of the clean image.

    Args:
        found: What to draw.
        headline: Title of the figure.

    Returns:
        A figure on an Agg canvas; save it with `figure.savefig(path)`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = min(MOST, found.losses.shape[1])
    figure = Figure(figsize=(2.6 * shown + 0.6, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for image, axes in enumerate(figure.subplots(1, shown, squeeze=False)[0]):
        losses = found.losses[:, image].cpu().numpy()
        axes.hist(losses, bins=20, color="#1a5fb4")
        axes.axvline(float(found.clean[image]), color="#5e5c64", linestyle="--", linewidth=1.2)
        axes.set_title(f"image {image}, spread {100 * float(found.spread[image]):.1f} %", fontsize="small")
        axes.set_xlabel("loss")
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("starts")
    figure.suptitle(headline)
    return figure
