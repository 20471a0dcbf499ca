"""Do most weights of a layer vanish while a few grow? (Shen et al., 2021, the Min-Max property)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_paf.utils.figures import REFERENCE, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VANISHING = 0.01
"""A weight counts as vanishing below this share of the largest one."""


@dataclass(frozen=True)
class MinMaxProfile:
    """How unequal the weights of a layer are. Nothing of it changes when all are multiplied by a number.

    Attributes:
        vanishing: Share of weights with `|w| < 0.01 max |w|`.
        kurtosis: Fourth moment over squared variance: 3 for a Gaussian, more where few weights are large.
        gini: Gini coefficient of `|w|`: 0 where all are equal, 1 - 1/n where a single one is left.
        ratio: `|w|_1 / |w|_2`: 1 for a single one, the root of n where all are equal.
    """

    vanishing: float
    kurtosis: float
    gini: float
    ratio: float


def min_max_profile(weight: Tensor) -> MinMaxProfile:
    """Look at all weights of a layer.

    Args:
        weight: Of any shape, with at least one entry that is not 0.

    Raises:
        ValueError: All are 0.
    """
    w = weight.detach().double().flatten()
    size = w.abs()
    if not (size > 0).any():
        raise ValueError("The weights of a layer are all 0, so they have no profile. Check the checkpoint.")
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
    """Weights of all convolutions of a network, by the names of their layers, in order."""
    return {name: layer.weight.detach() for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}


def draw_weights(weights: Mapping[str, Tensor], headline: str) -> "Figure":
    """Draw the distribution of `|w| / max |w|`: the share of weights of each layer up to each size.

    Args:
        weights: Of each layer, by name.
        headline: Title of the figure.

    Returns:
        The figure, for `utils.figures.save_figure`.
    """
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
