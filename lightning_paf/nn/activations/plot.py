"""Figure of activation functions over the histograms of their inputs."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
"""Number of inputs sampled from the largest call.

Fewer are sampled from smaller calls, in proportion.
"""


@dataclass(frozen=True)
class ActivationSite:
    """One panel of the figure.

    Attributes:
        title: Title of the panel.
        learned: The activation with its current parameters.
        initial: The activation with its initial parameters; None if it has none.
        inputs: Sample of its inputs, the pre-activations (N,), on the CPU.
    """

    title: str
    learned: Activation
    initial: Activation | None
    inputs: Tensor


@torch.no_grad()
def inputs_of(activations: Mapping[str, Activation], forward: Callable[[], object]) -> dict[str, Tensor]:
    """Sample the inputs of activations during one forward pass.

    Args:
        activations: Activations by name.
        forward: Calls the network once.

    Returns:
        For every name a sample (N,) of the inputs of all calls, on the CPU; names without finite inputs are omitted.
    """
    records = {name: _Record() for name in activations}
    with ExitStack() as hooks:
        for name, record in records.items():
            hooks.enter_context(activations[name].register_forward_pre_hook(record))
        forward()
    samples = {name: record.sample() for name, record in records.items()}
    return {name: sample for name, sample in samples.items() if len(sample)}


class _Record:
    """Forward-pre-hook that samples the inputs of every call and their number."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, int]] = []
        self._generator = torch.Generator().manual_seed(0)  # leaves the training's random state unchanged

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].flatten()
        picked = torch.randint(x.numel(), (SAMPLES,), generator=self._generator)
        self.calls.append((x[picked.to(x.device)].float().cpu(), x.numel()))

    def sample(self) -> Tensor:
        """Sample all calls together, every finite input with the same probability."""
        largest = max((size for _, size in self.calls), default=0)
        parts = [kept[: math.ceil(SAMPLES * size / largest)] for kept, size in self.calls]
        sample = torch.cat(parts) if parts else torch.empty(0)
        return sample[sample.isfinite()]


def draw_activations(sites: Sequence[ActivationSite], headline: str) -> "Figure":
    """Draw activations over the histograms of their inputs, one panel per site.

    Initial curves are dashed. With parameters per channel, the line is the mean and the band covers all channels.
    """
    columns = math.ceil(math.sqrt(len(sites)))
    rows = math.ceil(len(sites) / columns)
    size = (7.2, 4.8) if len(sites) == 1 else (3.4 * columns, 2.7 * rows + 0.8)
    with open_figure(*size, headline) as figure:
        for panel, site in enumerate(sites, start=1):
            axes = figure.add_subplot(rows, columns, panel)
            _draw_panel(axes, site)
            if panel > len(sites) - columns:
                axes.set_xlabel("pre-activation x")
            if panel % columns == 1 or columns == 1:
                axes.set_ylabel("activation f(x)")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_panel(axes: "Axes", site: ActivationSite) -> None:
    low, high = _range(site.inputs)
    x = torch.linspace(low, high, 801)
    histogram = axes.twinx()
    histogram.hist(site.inputs.numpy(), bins=80, range=(low, high), color=INPUTS, alpha=0.35)
    histogram.set_yticks([])
    histogram.margins(y=0.6)
    axes.set_zorder(histogram.get_zorder() + 1)
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
    """Range of 99 % of the inputs, extended to [-3, 3], where the curves differ."""
    low, high = inputs.quantile(torch.tensor([0.005, 0.995])).tolist()
    return min(low, -3.0), max(high, 3.0)


@torch.no_grad()
def _evaluate(activation: Activation, x: Tensor) -> Tensor:
    """Values (G, channels) on the grid x (G,), with one channel for scalar parameters."""
    parameter = next(activation.parameters(), x)
    channels = max((p.numel() for p in activation.parameters()), default=1)
    grid = x.to(parameter.device)[:, None].expand(-1, channels)
    values: Tensor = activation(grid)
    return values.float().cpu()
