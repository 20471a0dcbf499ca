"""Pictures of saliency maps."""

from typing import TYPE_CHECKING

from torch import Tensor

from lightning_paf.evaluation.saliency import SaliencyComparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 8
"""Images that are shown."""


def draw_saliency(x: Tensor, found: SaliencyComparison, headline: str) -> "Figure":
    """Draw the first images, one a column, above the two maps of each.

    Args:
        x: Images (N, C, H, W) in [0, 1].
        found: What was computed from them.
        headline: Title of the figure.

    Returns:
        A figure on an Agg canvas; save it with `figure.savefig(path)`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = min(MOST, len(x))
    figure = Figure(figsize=(1.3 * shown + 0.6, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(3, shown, squeeze=False)
    images = x[:shown].permute(0, 2, 3, 1).float().cpu()
    for image in range(shown):
        shades = images[image] if images.shape[-1] == 3 else images[image].mean(-1)
        rows[0, image].imshow(shades.numpy(), cmap="gray", vmin=0, vmax=1)
        for row, one in ((1, found.gradient), (2, found.perturbation)):
            rows[row, image].imshow(one.saliency[image].float().cpu().numpy(), cmap="magma", vmin=0)
        rows[0, image].set_title(f"{int(found.predictions[image])}", fontsize="small")
        rows[2, image].set_xlabel(f"overlap {float(found.overlap[image]):.2f}", fontsize="small")
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
    for axes, name in zip(rows[:, 0], ("image", "gradient", "perturbation"), strict=True):
        axes.set_ylabel(name)
    figure.suptitle(headline)
    return figure
