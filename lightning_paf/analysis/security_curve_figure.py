"""A picture of a security curve."""

from typing import TYPE_CHECKING

from lightning_paf.analysis.security_curve import SecurityCurve
from lightning_paf.analysis.security_curve_check import Recheck
from lightning_paf.attacks import radius_text
from lightning_paf.types import Radius
from lightning_paf.utils.figures import BLUE, REFERENCE, VERMILION, draw_accuracy, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        The figure, for `utils.figures.save_figure`.
    """
    unit = 255 if curve.norm == "linf" else 1
    eps = [unit * float(radius) for radius, _ in curve.points]
    accuracies = [accuracy for _, accuracy in curve.points]
    clean = 100 * accuracies[0].value
    with open_figure(7.2, 4.8, headline) as figure:
        axes = figure.add_subplot()
        name = f"eps ({curve.norm}{', in 1/255' if unit == 255 else ''})"
        draw_accuracy(axes, eps, accuracies, "robust accuracy", name, marker="o", markersize=5)
        axes.plot(eps[:1], [clean], "D", color=BLUE, markersize=8, label=f"clean accuracy, {clean:.1f} %")
        if trained is not None:
            axes.axvline(unit * float(trained), **REFERENCE, label=f"eps of the training, {radius_text(trained)}")
        if check is not None:
            direct = [100 * robust / check.total for robust in check.robust]
            at = [unit * float(radius) for radius in check.eps]
            axes.plot(at, direct, "s", color=VERMILION, fillstyle="none", markersize=10, label="direct attack (check)")
        if check is not None and check.alarms:
            axes.set_title("ALARM: this attack is unreliable here; the curve may be too high", color=VERMILION)
        axes.set_xlim(-0.02 * eps[-1], 1.02 * eps[-1])
        axes.legend()
    return figure
