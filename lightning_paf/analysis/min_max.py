"""Inequality of convolution weights, the Min-Max property (Shen et al., 2021)."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_paf.analysis.base import Load, Progress, Report, add_folder, folder_files, percent, table
from lightning_paf.runs.config_file import run_of
from lightning_paf.utils.figures import REFERENCE, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = 1

VANISHING = 0.01
"""A weight counts as vanishing below this fraction of the largest one."""


@dataclass(frozen=True)
class MinMaxProfile:
    """Inequality of the weights of a layer, independent of their scale.

    Attributes:
        vanishing: Fraction of weights with `|w| < 0.01 max |w|`.
        kurtosis: Fourth moment over squared variance: 3 for a Gaussian, more where few weights are large.
        gini: Gini coefficient of `|w|`: 0 where all are equal, 1 - 1/n where a single one differs from 0.
        ratio: `|w|_1 / |w|_2`: 1 where a single one differs from 0, the root of n where all are equal.
    """

    vanishing: float
    kurtosis: float
    gini: float
    ratio: float


def min_max_profile(weight: Tensor) -> MinMaxProfile:
    """Compute the profile of the weights of a layer, of any shape.

    Raises:
        ValueError: All are 0.
    """
    w = weight.detach().double().flatten()
    size = w.abs()
    if not (size > 0).any():
        raise ValueError("A layer must have a weight that is not 0, got all 0. Check the checkpoint.")
    n, deviation = len(w), w - w.mean()
    variance = deviation.square().mean()
    rank = torch.arange(1, n + 1, dtype=w.dtype, device=w.device)
    gini = ((2 * rank - n - 1) * size.sort().values).sum() / (n * size.sum())
    return MinMaxProfile(
        vanishing=float((size < VANISHING * size.max()).double().mean()),
        kurtosis=float(deviation.pow(4).mean() / variance.square()) if variance > 0 else float("nan"),
        gini=float(gini),
        ratio=float(size.sum() / w.norm()),
    )


def convolutions(net: nn.Module) -> dict[str, Tensor]:
    """Weights of all convolutions of a network by layer name, in order."""
    return {name: layer.weight.detach() for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}


def draw_weights(weights: Mapping[str, Tensor], headline: str) -> "Figure":
    """Draw the cumulative distribution of `|w| / max |w|` of each layer."""
    with open_figure(6.4, 4, headline) as figure:
        axes = figure.subplots()
        for name, weight in weights.items():
            size = weight.abs().flatten().float().cpu().sort().values
            fractions = torch.arange(1, len(size) + 1) / len(size)
            axes.plot((size / size.max()).clamp_min(1e-5).numpy(), fractions.numpy(), label=name, linewidth=1.2)
        axes.axvline(VANISHING, **REFERENCE)
        axes.set(xscale="log", xlim=(1e-4, 1), ylim=(0, 1), xlabel="|w| / max |w|", ylabel="fraction of weights below")
        axes.legend(fontsize="x-small")
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze min-max`."""
    add_folder(parser, "min_max")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Profile the convolutions of a network, one line per layer."""
    (checkpoint,) = options.ckpt
    net = load(checkpoint).model.net
    weights = convolutions(net)
    if not weights:
        raise ValueError(f"The network must have a convolution, got {type(net).__name__}. Pass --ckpt of another run.")
    profiles = {name: min_max_profile(weight) for name, weight in weights.items()}
    lines = table(
        ("layer", "vanishing", "kurtosis", "Gini", "|w|1/|w|2"),
        *(
            (name, percent(one.vanishing), f"{one.kurtosis:.2f}", f"{one.gini:.3f}", f"{one.ratio:.2f}")
            for name, one in profiles.items()
        ),
    )
    content = {name: asdict(one) for name, one in profiles.items()}
    figure = draw_weights(weights, f"{run_of(checkpoint).name}: weights of the convolutions")
    return Report(lines, folder_files("min_max", options.out, checkpoint, content, figure))
