"""A picture of logistic regression under attack."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_paf.evaluation.logistic import LinearRule, LogisticPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXACT, PGD, IN_RANGE = "#1a5fb4", "#c64600", "#26a269"


def draw_logistic(rule: LinearRule, curve: Sequence[LogisticPoint], x: Tensor, y: Tensor, headline: str) -> "Figure":
    """Draw the curve, and a digit with the perturbation that turns it.

    Args:
        rule: What was attacked.
        curve: Of `logistic_curve`.
        x: Images (N, 1, H, W), at least one of them right; of those the one whose distance is the median is shown.
        y: Labels (N,), 0 or 1.
        headline: Title of the figure.

    Returns:
        A figure on an Agg canvas; save it with `figure.savefig(path)`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3, width_ratios=(2.4, 1, 1))
    _draw_curve(figure.add_subplot(grid[:, 0]), curve)
    _draw_digit([figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (1, 2)], rule, x, y)
    figure.suptitle(headline)
    return figure


def _draw_curve(axes: "Axes", curve: Sequence[LogisticPoint]) -> None:
    eps = [point.eps for point in curve]
    for name, color, line, label in (
        ("exact", EXACT, "-", "closed form"),
        ("exact_in_range", IN_RANGE, "--", "closed form, pixels in [0, 1]"),
    ):
        axes.plot(eps, [100 * getattr(point, name) for point in curve], line, color=color, linewidth=2, label=label)
    for name, color, marker, size, label in (
        ("pgd", PGD, "o", 8, "PGD-20"),
        ("fgsm", PGD, "x", 5, "FGSM"),
        ("pgd_in_range", IN_RANGE, "s", 6, "PGD-20, pixels in [0, 1]"),
    ):
        values = [100 * getattr(point, name) for point in curve]
        axes.plot(eps, values, marker, color=color, fillstyle="none", markersize=size, label=label)
    axes.set_xlabel("eps (linf, pixels in [0, 1])")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(-2, 102)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False)


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
        (panels[2], digit, "digit, right", "gray", (0, 1)),
        (panels[3], turned, "digit + perturbation, wrong", "gray", (0, 1)),
    ):
        axes.imshow(image.reshape(rule.weight.shape).numpy(), cmap=color, vmin=limits[0], vmax=limits[1])
        axes.set_title(title, fontsize="small")
        axes.set(xticks=[], yticks=[])
