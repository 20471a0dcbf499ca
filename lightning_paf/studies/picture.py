"""A picture of a study: what each arm keeps of clean accuracy, and what it gains in robustness."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(found: dict[str, Any]) -> "Figure":
    """Draw AutoAttack accuracy over clean accuracy: a dot for each seed, a larger one for the mean of an arm.

    Args:
        found: What `report.content` returned.

    Returns:
        A figure on an Agg canvas; save it with `figure.savefig(path)`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (arm, values) in enumerate(found["arms"].items()):
        clean, robust = 100 * np.array(values["clean"]), 100 * np.array(values["autoattack"])
        colour = f"C{number}"
        axes.plot(clean, robust, "o", color=colour, markersize=4, alpha=0.5, linewidth=0)
        axes.plot(clean.mean(), robust.mean(), "o", color=colour, markersize=10, label=arm, linewidth=0)
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel(f"AutoAttack accuracy at {found['eps']:g}, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(f"{found['method']}: {found['seeds']} seeds, {found['examples']} test images", fontsize="medium")
    return figure
