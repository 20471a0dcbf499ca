"""Calibration, and detection of images out of distribution by entropy."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from lightning_paf.analysis.base import Load, Progress, Report, TrainedRun, add_folder, folder_files, table
from lightning_paf.data.image_batches import as_floats
from lightning_paf.data.sources import read_file
from lightning_paf.functional.calibration import calibration, entropy, reliability
from lightning_paf.runs.config_file import run_of
from lightning_paf.utils.arguments import positive
from lightning_paf.utils.figures import BLUE, COLOURS, REFERENCE, VERMILION, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = 1

AT_ONCE = 256
"""Images evaluated at once."""

ANGLES = range(0, 181, 15)
"""Degrees of the rotated test images."""


def permuted(x: Tensor) -> Tensor:
    """Images (N, C, H, W) whose pixels are permuted, all in the same way."""
    order = torch.randperm(x.shape[2] * x.shape[3], generator=torch.Generator().manual_seed(0))
    return x.flatten(2)[..., order.to(x.device)].view_as(x)


def rotated(x: Tensor, degrees: int = 90) -> Tensor:
    """Images (N, C, H, W) rotated counterclockwise, bilinearly, with black corners."""
    if degrees % 90 == 0 and (degrees % 180 == 0 or x.shape[2] == x.shape[3]):
        return x.rot90(degrees // 90, (2, 3))  # exact
    from torchvision.transforms.v2.functional import InterpolationMode, rotate_image

    turned: Tensor = rotate_image(x, degrees, InterpolationMode.BILINEAR)
    return turned


SHIFTS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"permuted": permuted, "rotated": rotated})


@torch.no_grad()
def probabilities_of(model: nn.Module, x: Tensor) -> Tensor:
    """Class probabilities (N, K) of images (N, C, H, W)."""
    return torch.cat([model(part).float().softmax(1) for part in torch.split(x, AT_ONCE)])


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve of a score (N,) that is larger out of distribution."""
    labels = torch.cat([torch.zeros_like(inside), torch.ones_like(outside)]).long()
    # In [0, 1], as others pass through a sigmoid, which rounds.
    scores = torch.cat([inside, outside]).double()
    return float(binary_auroc(scores / scores.max().clamp_min(1e-12), labels))


def draw_uncertainty(
    probabilities: Tensor,
    y: Tensor,
    outside: Mapping[str, Tensor],
    rotations: Mapping[int, Mapping[str, float]],
    headline: str,
) -> "Figure":
    """Draw the reliability diagram, entropies of test and other images, and rotations.

    Args:
        probabilities: Of the test images, (N, K).
        y: Their labels (N,).
        outside: Entropies (M,) of images out of distribution, by name.
        rotations: `calibration` of the rotated test images, by degrees.
        headline: Title.
    """
    confidences, accuracies, _ = zip(*reliability(probabilities, y), strict=True)
    with open_figure(13.2, 4, headline) as figure:
        left, right, last = figure.subplots(1, 3)
        left.plot([0, 1], [0, 1], **REFERENCE)
        left.plot(confidences, accuracies, "o-", color=BLUE)
        left.set(xlabel="confidence, mean of a bin", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        left.grid()
        edges = np.linspace(0, float(np.log(probabilities.shape[1])), 25)
        named = {"test": entropy(probabilities), **outside}
        for (name, values), colour in zip(named.items(), (BLUE, VERMILION, COLOURS[4], COLOURS[5]), strict=False):
            right.hist(values.cpu(), edges, density=True, histtype="step", color=colour, label=name, linewidth=1.8)
        right.set(xlabel="entropy (nats)", ylabel="density")
        right.legend()
        most = {"error": 1.0, "ece": 1.0, "entropy": float(np.log(probabilities.shape[1]))}
        for name, bound in most.items():
            label = name if bound == 1 else f"{name} / ln K"
            last.plot([*rotations], [values[name] / bound for values in rotations.values()], "o-", label=label)
        last.set(xlabel="rotation (degrees)", ylim=(0, 1.02), xticks=[*rotations][::3])
        last.legend()
        last.grid()
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze uncertainty`."""
    parser.add_argument("--examples", type=positive, help="number of test images (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of networks with random predictions (default: 0)")
    parser.add_argument("--ood", type=Path, metavar="FILE", help="npz file of images out of distribution")
    add_folder(parser, "uncertainty")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Evaluate the predictions of test images, and of shifted and other images."""
    (checkpoint,) = options.ckpt
    run = load(checkpoint)
    samples = run.samples(options.examples)
    x, y = samples.fetch(samples.ids)
    others = {name: shift(x) for name, shift in SHIFTS.items()}
    others |= _from_file(options.ood, run, x)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        progress("test images")
        probabilities = probabilities_of(run.model, x)
        inside = entropy(probabilities)
        outside = {}
        for name, images in others.items():
            progress(f"{name} images")
            outside[name] = entropy(probabilities_of(run.model, images))
        rotations = {}
        for degrees in ANGLES:
            progress(f"images rotated by {degrees} degrees")
            predicted = probabilities_of(run.model, rotated(x, degrees))
            rotations[degrees] = {**calibration(predicted, y), "auroc": auroc(inside, entropy(predicted))}
    found = calibration(probabilities, y)
    areas = {name: auroc(inside, values) for name, values in outside.items()}
    lines = [f"Predictions of {len(y)} test images (entropy and nll in nats)"]
    lines += table([*found], [f"{value:.4f}" for value in found.values()])
    lines += ["", "Images out of distribution, detected by their entropy"]
    rows = ((name, f"{float(outside[name].mean()):.4f}", f"{area:.4f}") for name, area in areas.items())
    lines += table(("images", "entropy", "AUROC"), *rows)
    lines += ["", "Rotated test images"]
    turned = ((str(degrees), *(f"{value:.4f}" for value in row.values())) for degrees, row in rotations.items())
    lines += table(("degrees", *rotations[0]), *turned)
    content = {
        "test": found,
        "ood": {name: {"entropy": float(outside[name].mean()), "auroc": areas[name]} for name in areas},
        "rotations": rotations,
    }
    figure = draw_uncertainty(probabilities, y, outside, rotations, f"{run_of(checkpoint).name}: uncertainty")
    return Report(lines, folder_files("uncertainty", options.out, checkpoint, content, figure))


def _from_file(path: Path | None, run: TrainedRun, x: Tensor) -> dict[str, Tensor]:
    """Images of a file by its folder and name, with the shape of `x`; none without it."""
    if path is None:
        return {}
    found = as_floats(torch.from_numpy(read_file(path, x.shape[1]).images))
    if found.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"--ood must hold images of shape {tuple(x.shape[1:])}, got {tuple(found.shape[1:])} in {path}. "
            "Resize them, or pass another file."
        )
    return {"/".join(path.absolute().parts[-2:]): found.to(run.device)}
