"""Pixels that predictions depend on, by gradients and by perturbations, compared."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_paf.analysis.base import Load, Progress, Report, add_folder, folder_files, table
from lightning_paf.functional.predictions import predicted
from lightning_paf.functional.saliency import gradient_saliency, most_salient, perturbation_saliency
from lightning_paf.nn.modes import frozen
from lightning_paf.runs.config_file import run_of
from lightning_paf.specs import class_name
from lightning_paf.types import Forward
from lightning_paf.utils.arguments import positive
from lightning_paf.utils.figures import open_figure, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = 1

MOST = 8
"""Images in the figure."""


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """One map for each image, and its effect on the prediction.

    Attributes:
        saliency: (N, H, W), at least 0.
        deletion: (N,), mean probability of the predicted class while pixels are removed, the most salient first;
            small for a map that finds the pixels that matter.
        insertion: (N,), the same while pixels are inserted, the most salient first; large for such a map.
    """

    saliency: Tensor
    deletion: Tensor
    insertion: Tensor


@dataclass(frozen=True, eq=False)
class SaliencyComparison:
    """Both maps of some images, for the predicted classes.

    Attributes:
        predictions: (N,), `NO_PREDICTION` where the logits are not finite.
        gradient: Absolute gradient of log p.
        perturbation: Change of the prediction where the image is blurred.
        overlap: (N,), intersection over union of the most salient 30 % of the pixels of the two maps; 0.18 for
            independent maps.
    """

    predictions: Tensor
    gradient: SaliencyMap
    perturbation: SaliencyMap
    overlap: Tensor


def compare_saliency(model: nn.Module, x: Tensor, grid: int = 8) -> SaliencyComparison:
    """Compute and evaluate both maps.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits (N, K). Left unchanged.
        x: Images (N, C, H, W).
        grid: Points in each direction at which the image is blurred.
    """
    with frozen(model):
        with torch.no_grad():
            logits = model(x)
        predictions = logits.argmax(1)  # a class even where the logits are not finite
        maps = gradient_saliency(model, x, predictions), perturbation_saliency(model, x, grid)
        gradient, perturbation = (SaliencyMap(one, *areas(model, x, predictions, one)) for one in maps)
    return SaliencyComparison(predicted(logits), gradient, perturbation, overlap(*maps))


def overlap(first: Tensor, second: Tensor, fraction: float = 0.3) -> Tensor:
    """Intersection over union (N,) of the most salient pixels of two maps (N, H, W).

    `fraction` of the pixels count as most salient.
    """
    one, other = (most_salient(saliency, fraction).flatten(1) for saliency in (first, second))
    return (one & other).sum(1) / (one | other).sum(1)


@torch.no_grad()
def areas(forward: Forward, x: Tensor, y: Tensor, saliency: Tensor, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Areas under the deletion and insertion curves (Petsiuk et al., BMVC 2018, RISE).

    A removed pixel has the mean of its channel over the image.

    Args:
        forward: Images to logits (N, K).
        x: Images (N, C, H, W).
        y: The classes (N,) whose probability is followed.
        saliency: (N, H, W).
        steps: Number of parts in which pixels are removed or inserted.

    Returns:
        Both areas (N,), in [0, 1].
    """
    empty = x.mean((2, 3), keepdim=True).expand_as(x)
    curves = []
    for step in range(steps + 1):
        first = most_salient(saliency, step / steps)[:, None]
        images = torch.where(first, empty, x), torch.where(first, x, empty)
        curves.append([forward(image).softmax(1).gather(1, y[:, None]).squeeze(1) for image in images])
    deleted, inserted = (
        torch.trapezoid(torch.stack(curve), dx=1 / steps, dim=0) for curve in zip(*curves, strict=True)
    )
    return deleted, inserted


def draw_saliency(x: Tensor, found: SaliencyComparison, headline: str, names: Sequence[str] = ()) -> "Figure":
    """Draw images (N, C, H, W), one per column, with predicted class and both maps."""
    shown = min(MOST, len(x))
    images = x[:shown].permute(0, 2, 3, 1).float().cpu()
    with open_figure(1.3 * shown + 0.6, 4.6, headline) as figure:
        rows = figure.subplots(3, shown, squeeze=False)
        for image in range(shown):
            shades = images[image] if images.shape[-1] == 3 else images[image].mean(-1)
            title = class_name(names, int(found.predictions[image]))
            show_image(rows[0, image], shades.numpy(), title, cmap="gray", vmin=0, vmax=1)
            for row, one in ((1, found.gradient), (2, found.perturbation)):
                show_image(rows[row, image], one.saliency[image].float().cpu().numpy(), cmap="magma", vmin=0)
            rows[2, image].set_xlabel(f"overlap {float(found.overlap[image]):.2f}", fontsize="small")
        for axes, name in zip(rows[:, 0], ("image", "gradient", "perturbation"), strict=True):
            axes.set_ylabel(name)
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze saliency`."""
    parser.add_argument("--examples", type=positive, default=100, help="number of test images (default: 100)")
    parser.add_argument("--grid", type=positive, default=8, help="points in each direction to blur at (default: 8)")
    add_folder(parser, "saliency")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Compare the two saliency maps of test images."""
    (checkpoint,) = options.ckpt
    run = load(checkpoint)
    samples = run.samples(options.examples)
    x, labels = samples.fetch(samples.ids)
    progress("saliency maps")
    found = compare_saliency(run.model, x, options.grid)
    maps = {"gradient": found.gradient, "perturbation": found.perturbation}
    lines = [
        f"Saliency of {len(x)} images, for the predicted class",
        f"Overlap of the most salient 30 % of the pixels: mean {found.overlap.mean():.3f} (by chance 0.18)",
        "Mean probability while the most salient pixels are deleted or inserted first:",
        *table(
            ("", "deleted (low is good)", "inserted (high is good)"),
            *((name, f"{one.deletion.mean():.3f}", f"{one.insertion.mean():.3f}") for name, one in maps.items()),
        ),
    ]
    content = {"label": labels.tolist(), "prediction": found.predictions.tolist(), "overlap": found.overlap.tolist()}
    for name, one in maps.items():
        content |= {f"{name}_deletion": one.deletion.tolist(), f"{name}_insertion": one.insertion.tolist()}
    headline = f"{run_of(checkpoint).name}: pixels that the prediction depends on"
    figure = draw_saliency(x, found, headline, run.datamodule.spec.class_names)
    return Report(lines, folder_files("saliency", options.out, checkpoint, content, figure))
