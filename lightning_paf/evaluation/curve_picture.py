"""A picture of a security curve."""

from typing import TYPE_CHECKING

from lightning_paf.attacks import radius_text
from lightning_paf.evaluation.curve import SecurityCurve
from lightning_paf.evaluation.curve_check import Recheck
from lightning_paf.types import Radius

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE, CHECK, TRAINED = "#1a5fb4", "#c64600", "#5e5c64"


def draw_curve(
    curve: SecurityCurve, headline: str, check: Recheck | None = None, trained: Radius | None = None
) -> "Figure":
    """Draw robust accuracy over eps with its 95 % intervals.

    Args:
        curve: What to draw.
        headline: Title of the figure.
        check: Its direct attacks are drawn as squares, its alarms written below the title.
        trained: The eps that the model was trained with, marked by a line.

    Returns:
        A figure on an Agg canvas, outside pyplot's global state; save it with `figure.savefig(path)`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    unit = 255 if curve.norm == "linf" else 1
    eps = [unit * float(radius) for radius, _ in curve.points]
    accuracies = [accuracy for _, accuracy in curve.points]
    low, high = ([100 * getattr(accuracy, end) for accuracy in accuracies] for end in ("low", "high"))
    axes.fill_between(eps, low, high, color=CURVE, alpha=0.18, linewidth=0, label="95 % interval (pointwise)")
    values = [100 * accuracy.value for accuracy in accuracies]
    axes.plot(eps, values, color=CURVE, marker="o", markersize=5, linewidth=2, label="robust accuracy")
    axes.plot(eps[:1], values[:1], "D", color=CURVE, markersize=8, label=f"clean accuracy, {values[0]:.1f} %")
    if trained is not None:
        label = f"eps of the training, {radius_text(trained)}"
        axes.axvline(unit * float(trained), color=TRAINED, linestyle="--", linewidth=1.2, label=label)
    if check is not None:
        direct = [100 * robust / check.total for robust in check.robust]
        places = [unit * float(radius) for radius in check.eps]
        axes.plot(places, direct, "s", color=CHECK, fillstyle="none", markersize=10, label="direct attack (check)")
    axes.set_xlabel(f"eps ({curve.norm}{', in 1/255' if unit == 255 else ''})")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.02 * eps[-1], 1.02 * eps[-1])
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False)
    figure.suptitle(headline)
    if check is not None and check.alarms:
        axes.set_title(
            "ALARM: this attack is unreliable here; the curve may be too high", color=CHECK, fontsize="medium"
        )
    return figure
