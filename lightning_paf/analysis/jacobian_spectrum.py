"""Growth of perturbations from block to block, and its bound by singular values."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_paf.analysis.base import (
    Load,
    Progress,
    Report,
    TrainedRun,
    add_folder,
    folder_files,
    mean_and_range,
    table,
)
from lightning_paf.attacks import Attack, radius_text
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.jacobian_spectrum import Spectrum, jacobian_spectrum
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.residual_chain import ResidualChain
from lightning_paf.runs.config_file import run_of
from lightning_paf.utils.arguments import positive
from lightning_paf.utils.figures import BLUE, GREY, VERMILION, WINE, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHECKPOINTS = 1

_BOUNDS = {
    "product": "product of sigma",
    "residual": "product of 1 + sigma(F)",
    "exponential": "exp of sum of sigma(F)",
}


def growth(model: Classifier, x: Tensor, x_adv: Tensor) -> Tensor:
    """Growth of a perturbation from the input of the first block on.

    Args:
        model: Images (N, C, H, W) to logits, with residual blocks.
        x: Images (N, C, H, W).
        x_adv: Perturbed images (N, C, H, W).

    Returns:
        l2 distances of the two forward passes at the input of the first block and after each block, divided by the
        first one, (blocks + 1, N); NaN for images that are equal.
    """
    chain = ResidualChain(model, x)
    with frozen(model), torch.no_grad():
        pairs = zip(chain.states(x), chain.states(x_adv), strict=True)
        distances = torch.stack([(after - before).flatten(1).norm(dim=1) for before, after in pairs])
    return distances / distances[0]


def draw_spectrum(found: Spectrum, measured: Tensor, headline: str) -> "Figure":
    """Draw the singular values of all parts, and the growth with its bounds.

    Args:
        found: Singular values.
        measured: Result of `growth` for the same images.
        headline: Title.
    """
    with open_figure(9.6, 4.2, headline) as figure:
        left, right = figure.subplots(1, 2)
        _draw_values(
            left, {"embedding": found.embedding, **found.blocks, "head": found.head}, "with its identity", BLUE
        )
        _draw_values(left, found.residual, "without it, F", VERMILION)
        left.set(ylabel="largest singular value")
        left.set_ylim(bottom=0)
        left.legend(title="sigma of a block, mean and range of images", fontsize="x-small", title_fontsize="x-small")
        steps = range(len(found.blocks) + 1)
        for (name, label), colour in zip(_BOUNDS.items(), (BLUE, VERMILION, WINE), strict=True):
            means = [float(found.log_bounds(number)[name].exp().mean()) if number else 1.0 for number in steps]
            right.plot(steps, means, color=colour, label=f"bound: {label}", marker="o", markersize=3)
        values = measured.cpu()
        right.fill_between(steps, values.amin(1), values.amax(1), color=GREY, alpha=0.25, linewidth=0)
        right.plot(steps, values.mean(1), color=GREY, label="measured, mean and range", linestyle="--")
        right.set(xlabel="block", ylabel="growth of a perturbation", yscale="log", xticks=steps)
        right.legend(fontsize="x-small")
    return figure


def _draw_values(axes: "Axes", values: Mapping[str, Tensor], label: str, colour: str) -> None:
    names = list(values)
    means = [float(value.mean()) for value in values.values()]
    low = [mean - float(value.min()) for mean, value in zip(means, values.values(), strict=True)]
    high = [float(value.max()) - mean for mean, value in zip(means, values.values(), strict=True)]
    axes.errorbar(names, means, [low, high], color=colour, label=label, fmt="o", markersize=4, linewidth=1.2)
    axes.tick_params("x", rotation=60, labelsize="small")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze jacobian-spectrum`."""
    parser.add_argument("--examples", type=positive, default=8, help="number of test images (default: 8)")
    parser.add_argument("--iterations", type=positive, default=50, help="steps of the power iteration (default: 50)")
    parser.add_argument("--seed", type=int, default=0)
    add_folder(parser, "jacobian_spectrum")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Compute singular values and the growth under the training attack."""
    (checkpoint,) = options.ckpt
    run = load(checkpoint)
    samples = run.samples(options.examples)
    x, y = samples.fetch(samples.ids)
    found = jacobian_spectrum(
        run.model, x, options.iterations, options.seed, lambda part: progress(f"power iteration: {part}")
    )
    progress("training attack")
    torch.manual_seed(options.seed)
    attack = run.module.attack
    measured = _measured(run, attack, x, y)
    rows = {"embedding": found.embedding, **found.blocks, "head": found.head}
    lines = [f"Largest singular values at {len(x)} images (sigma(F): of the block minus the identity)"]
    lines += table(
        ("", "mean", "min", "max", "sigma(F)"),
        *((name, *mean_and_range(v), _mean(found.residual, name)) for name, v in rows.items()),
        *((f"  {name}", *mean_and_range(v), "") for name, v in found.branches.items()),
    )
    bounds = found.log_bounds()
    under_attack = f"measured, {type(attack).__name__} {attack.norm} eps {radius_text(attack.eps)}"
    lines += ["", "Growth of a perturbation from the first to the last block"]
    lines += table(
        ("", "mean", "min", "max"),
        (under_attack, *mean_and_range(measured[-1])),
        *((f"bound, {label}", *mean_and_range(bounds[name].exp())) for name, label in _BOUNDS.items()),
    )
    content = {
        "embedding": found.embedding.tolist(),
        **{
            kind: {k: v.tolist() for k, v in getattr(found, kind).items()}
            for kind in ("blocks", "residual", "branches")
        },
        "head": found.head.tolist(),
        "log_bounds": {name: values.tolist() for name, values in bounds.items()},
        "growth": measured.tolist(),
    }
    figure = draw_spectrum(found, measured, f"{run_of(checkpoint).name}: Jacobians of the residual blocks")
    return Report(lines, folder_files("jacobian_spectrum", options.out, checkpoint, content, figure))


def _measured(run: TrainedRun, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    """Growth of the perturbations of an attack, of images that it changes."""
    measured = growth(run.model, x, attack(run.model, x, y))
    measured = measured[:, measured.isfinite().all(0)]
    if measured.shape[1] == 0:
        raise ValueError(
            f"The training attack must change an image, got none of {len(x)} changed by {type(attack).__name__}. "
            "Pass another --model.attack."
        )
    return measured


def _number(value: Tensor) -> str:
    return f"{float(value):.3g}"


def _mean(values: Mapping[str, Tensor], name: str) -> str:
    return _number(values[name].mean()) if name in values else ""
