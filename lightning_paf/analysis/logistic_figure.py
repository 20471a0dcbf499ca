"""A picture of logistic regression under attack."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_paf.analysis.logistic import LinearRule, LogisticPoint
from lightning_paf.utils.figures import BLUE, VERMILION, WINE, open_figure, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXACT, PGD, IN_RANGE = BLUE, VERMILION, WINE


def draw_logistic(rule: LinearRule, curve: Sequence[LogisticPoint], x: Tensor, y: Tensor, headline: str) -> "Figure":
    """Draw the curve, and a digit with the perturbation that turns it.

    Args:
        rule: What was attacked.
        curve: Of `logistic_curve`.
        x: Images (N, 1, H, W), at least one of them right; of those the one whose distance is the median is shown.
        y: Labels (N,), 0 or 1.
        headline: Title of the figure.

    Returns:
        The figure, for `utils.figures.save_figure`.
    """
    with open_figure(11, 4.4, headline) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(2.4, 1, 1))
        _draw_curve(figure.add_subplot(grid[:, 0]), curve)
        _draw_digit([figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (1, 2)], rule, x, y)
    return figure


def _draw_curve(axes: "Axes", curve: Sequence[LogisticPoint]) -> None:
    eps = [point.eps for point in curve]
    for name, color, line, label in (
        ("exact", EXACT, "-", "closed form"),
        ("exact_in_range", IN_RANGE, "--", "closed form, pixels in [0, 1]"),
    ):
        axes.plot(eps, [100 * getattr(point, name) for point in curve], line, color=color, label=label)
    for name, color, marker, size, label in (
        ("pgd", PGD, "o", 8, "PGD-20"),
        ("fgsm", PGD, "x", 5, "FGSM"),
        ("pgd_in_range", IN_RANGE, "s", 6, "PGD-20, pixels in [0, 1]"),
    ):
        values = [100 * getattr(point, name) for point in curve]
        axes.plot(eps, values, marker, color=color, fillstyle="none", markersize=size, label=label)
    axes.set(xlabel="eps (linf, pixels in [0, 1])", ylabel="accuracy (%)", ylim=(-2, 102))
    axes.grid()
    axes.legend()


def _draw_digit(panels: Sequence["Axes"], rule: LinearRule, x: Tensor, y: Tensor) -> None:
    distances = rule.distances(x, y)
    right = (distances > 0).nonzero().squeeze(1)
    chosen = right[distances[right].argsort()[len(right) // 2]].view(1)
    digit, label = x[chosen], y[chosen]
    eps = 1.01 * float(distances[chosen])
    turned = rule.worst(digit, label, eps)
    largest = float(rule.weight.abs().max())
    for axes, image, title, color, limits in (
        (panels[0], rule.weight, "weights w", "RdBu", (-largest, largest)),
        (panels[1], turned - digit, f"perturbation, ±{eps:.3f}", "RdBu", (-eps, eps)),
        (panels[2], digit, "digit, classified correctly", "gray", (0, 1)),
        (panels[3], turned, "digit + perturbation, fooled", "gray", (0, 1)),
    ):
        show_image(axes, image.reshape(rule.weight.shape).numpy(), title, cmap=color, vmin=limits[0], vmax=limits[1])
