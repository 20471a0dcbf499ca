"""A picture of activation functions over the inputs that reach them, and the inputs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_paf.nn.activations import Activation
from lightning_paf.utils.figures import BLUE, LIGHT_GREY, VERMILION, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEARNED, INITIAL, INPUTS = BLUE, VERMILION, LIGHT_GREY
SAMPLES = 2**15
"""Inputs kept of the largest call of an activation; of the other calls in proportion to their size."""

RANGE_AT_LEAST = 3.0
"""The picture reaches from -3 to 3 or further: there the curves differ, wherever the inputs lie."""


@dataclass(frozen=True)
class ActivationSite:
    """One panel of the picture.

    Attributes:
        title: What stands above the panel.
        learned: The activation as it is.
        initial: The same activation as the training found it; None for one without parameters.
        inputs: Pre-activations (N,) that reach it, on the CPU.
    """

    title: str
    learned: Activation
    initial: Activation | None
    inputs: Tensor


@torch.no_grad()
def inputs_of(activations: Mapping[str, Activation], forward: Callable[[], object]) -> dict[str, Tensor]:
    """Sample what reaches activations during one forward pass.

    Args:
        activations: By name.
        forward: Calls the network once.

    Returns:
        For every name a sample (N,) of the inputs of all calls, on the CPU; nothing for one that no finite input
        reaches.
    """
    records = {name: _Record() for name in activations}
    hooks = [activations[name].register_forward_pre_hook(record) for name, record in records.items()]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    samples = {name: record.sample() for name, record in records.items()}
    return {name: sample for name, sample in samples.items() if len(sample)}


class _Record:
    """Forward-pre-hook that keeps equally many inputs of every call, and how many there were."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, int]] = []
        # A generator of its own: looking must not change the random numbers of the training.
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].flatten()
        picked = torch.randint(x.numel(), (SAMPLES,), generator=self._generator)
        self.calls.append((x[picked.to(x.device)].float().cpu(), x.numel()))

    def sample(self) -> Tensor:
        """One sample of all calls together, where every finite input has the same chance."""
        largest = max((size for _, size in self.calls), default=0)
        shares = [kept[: math.ceil(SAMPLES * size / largest)] for kept, size in self.calls]
        sample = torch.cat(shares) if shares else torch.empty(0)
        return sample[sample.isfinite()]


def draw_activations(sites: Sequence[ActivationSite], headline: str) -> "Figure":
    """Draw every activation, its initial shape, and the histogram of its inputs.

    Where an activation has parameters per channel, the line is the mean and the band holds all channels.

    Args:
        sites: One panel each, in a grid.
        headline: Title of the figure.

    Returns:
        The figure, for `utils.figures.save_figure`.
    """
    columns = math.ceil(math.sqrt(len(sites)))
    rows = math.ceil(len(sites) / columns)
    size = (7.2, 4.8) if len(sites) == 1 else (3.4 * columns, 2.7 * rows + 0.8)
    with open_figure(*size, headline) as figure:
        for place, site in enumerate(sites, start=1):
            axes = figure.add_subplot(rows, columns, place)
            _draw_panel(axes, site)
            if place > len(sites) - columns:
                axes.set_xlabel("pre-activation x")
            if place % columns == 1 or columns == 1:
                axes.set_ylabel("activation f(x)")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_panel(axes: "Axes", site: ActivationSite) -> None:
    low, high = _range(site.inputs)
    x = torch.linspace(low, high, 801)
    behind = axes.twinx()
    behind.hist(site.inputs.numpy(), bins=80, range=(low, high), color=INPUTS, alpha=0.35)
    behind.set_yticks([])
    behind.margins(y=0.6)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    for activation, label, color, line, width in (
        (site.learned, "now", LEARNED, "-", 2.2),
        (site.initial, "at the start", INITIAL, "--", 1.4),
    ):
        if activation is None:
            continue
        values = _evaluate(activation, x)
        axes.plot(x.numpy(), values.mean(1).numpy(), color=color, linestyle=line, linewidth=width, label=label)
        if values.shape[1] > 1:
            least, most = values.amin(1).numpy(), values.amax(1).numpy()
            axes.fill_between(x.numpy(), least, most, color=color, alpha=0.15, linewidth=0)
    axes.fill_between([], [], [], color=INPUTS, alpha=0.35, label="pre-activations (histogram)")
    axes.grid()
    axes.set_xlim(low, high)
    axes.set_title(site.title)


def _range(inputs: Tensor) -> tuple[float, float]:
    """From where to where 99 % of the inputs lie, and at least from -3 to 3."""
    low, high = inputs.quantile(torch.tensor([0.005, 0.995])).tolist()
    return min(low, -RANGE_AT_LEAST), max(high, RANGE_AT_LEAST)


@torch.no_grad()
def _evaluate(activation: Activation, x: Tensor) -> Tensor:
    """Values (G, channels) on the grid x (G,), one channel where the parameters are scalars."""
    parameter = next(activation.parameters(), x)
    channels = max((p.numel() for p in activation.parameters()), default=1)
    grid = x.to(parameter.device)[:, None].expand(-1, channels)
    values: Tensor = activation(grid)
    return values.float().cpu()
