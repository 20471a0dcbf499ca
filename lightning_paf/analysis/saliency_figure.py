"""Pictures of saliency maps."""

from typing import TYPE_CHECKING

from torch import Tensor

from lightning_paf.analysis.saliency import SaliencyComparison
from lightning_paf.utils.figures import open_figure, show_image

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
        The figure, for `utils.figures.save_figure`.
    """
    shown = min(MOST, len(x))
    images = x[:shown].permute(0, 2, 3, 1).float().cpu()
    with open_figure(1.3 * shown + 0.6, 4.6, headline) as figure:
        rows = figure.subplots(3, shown, squeeze=False)
        for image in range(shown):
            shades = images[image] if images.shape[-1] == 3 else images[image].mean(-1)
            title = f"predicted {int(found.predictions[image])}"
            show_image(rows[0, image], shades.numpy(), title, cmap="gray", vmin=0, vmax=1)
            for row, one in ((1, found.gradient), (2, found.perturbation)):
                show_image(rows[row, image], one.saliency[image].float().cpu().numpy(), cmap="magma", vmin=0)
            rows[2, image].set_xlabel(f"overlap {float(found.overlap[image]):.2f}", fontsize="small")
        for axes, name in zip(rows[:, 0], ("image", "gradient", "perturbation"), strict=True):
            axes.set_ylabel(name)
    return figure
