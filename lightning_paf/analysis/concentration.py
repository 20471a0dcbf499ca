"""Final losses of PGD from many random starts (Madry et al., 2018, section 3.2)."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_paf.analysis.base import Load, Progress, Report, add_folder, folder_files
from lightning_paf.attacks import PGD, radius_text
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.modes import frozen
from lightning_paf.runs.config_file import run_of
from lightning_paf.utils.arguments import number, positive
from lightning_paf.utils.figures import BLUE, REFERENCE, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = 1

MOST = 5
"""Images with a histogram each, as in figure 2 of Madry et al. (2018)."""

BINS = 40
"""Bins of the loss axis, from 0 to beyond the largest loss."""


@dataclass(frozen=True, eq=False)
class Concentration:
    """Final losses of an attack from many random starts.

    Attributes:
        losses: (starts, N), cross-entropy at the end of each start.
        clean: (N,), cross-entropy of the images themselves.
        distance: (N,), mean distance between two results for the same image, in the norm of the attack and units of
            eps: maxima can be far apart although their losses agree.
    """

    losses: Tensor
    clean: Tensor
    distance: Tensor

    @property
    def spread(self) -> Tensor:
        """Standard deviation over the starts divided by their mean, for each image (N,)."""
        return self.losses.std(0) / self.losses.mean(0).clamp_min(torch.finfo(self.losses.dtype).tiny)

    @property
    def outlier(self) -> Tensor:
        """Distance of the best start from the mean, in standard deviations, (N,).

        0 if all losses agree.
        """
        deviation = self.losses.std(0)
        above = self.losses.amax(0) - self.losses.mean(0)
        return torch.where(deviation > 0, above / deviation.clamp_min(torch.finfo(deviation.dtype).tiny), 0.0)


def concentration(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: PGD,
    starts: int = 100,
    progress: Callable[[str], object] = lambda _: None,
) -> Concentration:
    """Attack the same images from several random starts.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits.
        x: Images (N, C, H, W).
        y: Labels (N,).
        attack: PGD with a random start.
        starts: Number of starts, at least 2.
        progress: Called with a line before each start.

    Raises:
        ValueError: An attack without a random start, or fewer than two starts.
    """
    if attack.start == "none" or starts < 2:
        raise ValueError(
            f"start must be random and starts at least 2, got start={attack.start} and starts={starts}. Pass "
            "start=uniform and --starts 100."
        )

    def losses_of(images: Tensor) -> Tensor:
        with torch.no_grad(), frozen(model):
            return cross_entropy(model(images), y).float()

    losses, distance, previous = [], torch.zeros(len(x), device=x.device), None
    for start in range(starts):
        progress(f"start {start + 1} of {starts}")
        x_adv = attack(model, x, y)
        losses.append(losses_of(x_adv))
        if previous is not None:  # consecutive starts are as independent as any two
            distance += geometry_of(attack.norm).size(x_adv - previous) / (attack.radius * (starts - 1))
        previous = x_adv
    return Concentration(torch.stack(losses), losses_of(x), distance)


def spread_text(spread: float) -> str:
    """A fraction in % with two significant digits, as in `0.0031 %`."""
    percent = 100 * spread
    return f"{percent:.2g} %" if percent < 99.5 else f"{percent:.0f} %"


def draw_concentration(found: Concentration, headline: str) -> "Figure":
    """Draw a histogram of final losses per image, with a line for the clean loss.

    Each image has a separate axis from 0, so that the width of a histogram is the spread.
    """
    from matplotlib.ticker import MaxNLocator

    shown = min(MOST, found.losses.shape[1])
    with open_figure(2.6 * shown + 0.6, 3.2, headline) as figure:
        for image, axes in enumerate(figure.subplots(1, shown, squeeze=False, sharey=True)[0]):
            losses, clean = found.losses[:, image].cpu().numpy(), float(found.clean[image])
            end = 1.1 * max(float(losses.max()), clean) or 1.0
            axes.hist(losses, bins=BINS, range=(0, end), color=BLUE)
            axes.axvline(clean, **REFERENCE)
            axes.set_title(f"image {image}, spread {spread_text(float(found.spread[image]))}", fontsize="small")
            axes.set(xlabel="loss", xlim=(0, end))
            axes.xaxis.set_major_locator(MaxNLocator(3))
        figure.axes[0].set_ylabel("starts")
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze concentration`."""
    parser.add_argument("--examples", type=positive, default=20, help="number of test images (default: 20)")
    parser.add_argument("--starts", type=number(int, least=2), default=100, help="attacks of each image (default: 100)")
    parser.add_argument("--steps", type=positive, default=20, help="steps of each attack (default: 20)")
    parser.add_argument("--eps", type=number(Fraction, above=0), help="e.g. 8/255; default: that of the training")
    parser.add_argument("--seed", type=int, default=0)
    add_folder(parser, "concentration")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Attack test images from many random starts."""
    (checkpoint,) = options.ckpt
    run = load(checkpoint)
    norm, eps = run.module.attack.norm, options.eps or run.module.attack.eps
    samples = run.samples(options.examples)
    attack = PGD(eps, step_size=2.5 * float(eps) / options.steps, steps=options.steps, norm=norm)
    torch.manual_seed(options.seed)
    found = concentration(run.model, *samples.fetch(samples.ids), attack, options.starts, progress)
    spread, outlier = found.spread, found.outlier
    lines = [
        f"{options.starts} starts of PGD-{options.steps} on {len(samples)} images, {norm} {radius_text(eps)}",
        f"Mean loss: clean {found.clean.mean():.3f}, attacked {found.losses.mean():.3f}",
        f"Spread of the final losses (standard deviation / mean): median {spread_text(float(spread.median()))}",
        f"Best start above the mean, in deviations: median {outlier.median():.1f}, maximum {outlier.max():.1f}",
        f"Distance between two results for one image: {found.distance.mean():.2f} eps (maximum: 2)",
    ]
    content = {name: getattr(found, name).tolist() for name in ("losses", "clean", "distance")}
    headline = f"{run_of(checkpoint).name}: final losses of {options.starts} starts (dashed: clean image)"
    figure = draw_concentration(found, headline)
    return Report(lines, folder_files("concentration", options.out, checkpoint, content, figure))
