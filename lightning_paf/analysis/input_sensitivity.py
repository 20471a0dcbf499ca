"""Sensitivity of the output to the image, and propagation of noise."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_paf.analysis.base import Load, Progress, Report, add_folder, folder_files, mean_and_range, table
from lightning_paf.nets.ode.snode import StandaloneNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.runs.config_file import run_of
from lightning_paf.utils.arguments import number, positive
from lightning_paf.utils.figures import BLUE, REFERENCE, VERMILION, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = 1

Output = Callable[[Tensor], Tensor]
"""Maps images (N, C, H, W) to outputs (N, F), whose first components are logits."""


@dataclass(frozen=True)
class Propagation:
    """Effect of Gaussian noise on the margin to the second most likely class.

    Attributes:
        predicted: Standard deviation of the margin by the sensitivity matrix, (N,).
        measured: That of the network, (N,).
        changed: Fraction of noisy images with another predicted class, (N,).
        expected: Fraction with a negative margin by the sensitivity matrix, (N,), without changes to a third class.
        error: Norm of the difference of linearised and actual outputs, relative to that of the change, (N,).
    """

    predicted: Tensor
    measured: Tensor
    changed: Tensor
    expected: Tensor
    error: Tensor


def output_of(model: Classifier) -> Output:
    """Terminal state of `SNODE` and `SNODEResNet`, logits of other networks."""
    if isinstance(model.net, StandaloneNet):
        return lambda x: model.outputs(x).features
    return model


def sensitivity_matrix(output: Output, x: Tensor) -> Tensor:
    """Derivatives P (N, F, D) of outputs (N, F) by images (N, C, H, W) of D values.

    Its columns are the solutions of the sensitivity problem for a change of each value of the image. They come from F
    reverse passes.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        rows = output(x).sum(0).unbind()
        gradients = [torch.autograd.grad(row, x, retain_graph=True)[0].flatten(1) for row in rows]
    return torch.stack(gradients, dim=1)


@torch.no_grad()
def propagate(
    output: Output, x: Tensor, matrix: Tensor, classes: int, std: float, draws: int, seed: int = 0
) -> Propagation:
    """Compare noise through a network with noise through its sensitivity matrix.

    Args:
        output: Images to outputs.
        x: Images (N, C, H, W); noisy ones are not clipped.
        matrix: Result of `sensitivity_matrix`.
        classes: Number of logits, K.
        std: Standard deviation of the noise.
        draws: Number of noisy images for each image, at least 2.
        seed: Seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = output(x)
    first, second = clean[:, :classes].topk(2, dim=1).indices.T
    images = torch.arange(len(x), device=x.device)
    margins, flips, square_error, square_change = [], [], torch.zeros_like(clean[:, 0]), torch.zeros_like(clean[:, 0])
    for _ in range(draws):
        noise = std * torch.randn(x.shape, generator=generator).to(x)
        noisy = output(x + noise)
        linear = (matrix @ noise.flatten(1)[:, :, None])[:, :, 0]
        square_error += (noisy - clean - linear).square().sum(1)
        square_change += (noisy - clean).square().sum(1)
        margins.append(noisy[images, first] - noisy[images, second])
        flips.append(noisy[:, :classes].argmax(1) != first)
    predicted = std * (matrix[images, first] - matrix[images, second]).norm(dim=1)
    margin = clean[images, first] - clean[images, second]
    tiny = torch.finfo(margin.dtype).tiny
    return Propagation(
        predicted,
        torch.stack(margins).std(0),
        torch.stack(flips).float().mean(0),
        torch.special.ndtr(-margin / predicted.clamp_min(tiny)),
        (square_error / square_change.clamp_min(tiny)).sqrt(),
    )


def draw_sensitivity(values: Tensor, found: Propagation, headline: str) -> "Figure":
    """Draw singular values (N, R), and predicted over measured deviations."""
    values = values.cpu()
    with open_figure(9.6, 4.2, headline) as figure:
        left, right = figure.subplots(1, 2)
        ranks = range(1, values.shape[1] + 1)
        left.fill_between(ranks, values.amin(0), values.amax(0), color=BLUE, alpha=0.2, linewidth=0, label="range")
        left.plot(ranks, values.mean(0), color=BLUE, label="mean of images", marker="o", markersize=3)
        left.axhline(1, **REFERENCE)
        left.set(xlabel="rank", ylabel="singular value of P", yscale="log")
        left.legend()
        measured, predicted = found.measured.cpu(), found.predicted.cpu()
        most = 1.05 * float(torch.cat([measured, predicted]).max())
        right.plot([0, most], [0, most], **REFERENCE)
        right.plot(measured, predicted, "o", color=VERMILION, markersize=5)
        right.set(xlabel="measured", ylabel="from P", xlim=(0, most), ylim=(0, most))
        right.set_title("Standard deviation of the margin under noise")
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze input-sensitivity`."""
    parser.add_argument("--examples", type=positive, default=8, help="number of test images (default: 8)")
    parser.add_argument("--std", type=number(float, above=0), default=0.05, help="of the noise (default: 0.05)")
    parser.add_argument("--draws", type=number(int, least=2), default=200, help="noisy images of each (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    add_folder(parser, "input_sensitivity")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Compute sensitivity matrices, and compare them with noise."""
    (checkpoint,) = options.ckpt
    run = load(checkpoint)
    samples = run.samples(options.examples)
    x, _ = samples.fetch(samples.ids)
    output = output_of(run.model)
    with frozen(run.model):
        progress("sensitivity matrices")
        matrix = sensitivity_matrix(output, x)
        progress(f"{options.draws} draws of noise")
        found = propagate(output, x, matrix, run.model.num_classes, options.std, options.draws, options.seed)
    values = torch.linalg.svdvals(matrix)
    growth = matrix.flatten(1).norm(dim=1) / matrix.shape[2] ** 0.5
    rows = {
        "largest singular value of P": values[:, 0],
        "smallest singular value of P": values[:, -1],
        "growth of a random direction": growth,
        "deviation of the margin, from P": found.predicted,
        "deviation of the margin, measured": found.measured,
        "change to the second class, from P": found.expected,
        "change to any class, measured": found.changed,
        "error of the linearisation": found.error,
    }
    size = f"{matrix.shape[1]} x {matrix.shape[2]}"
    lines = [f"Sensitivity P ({size}) at {len(x)} images, and noise of deviation {options.std:g}"]
    lines += table(
        ("", "mean", "min", "max"),
        *((name, *mean_and_range(r)) for name, r in rows.items()),
    )
    content = {"singular_values": values.tolist(), **{name: row.tolist() for name, row in rows.items()}}
    figure = draw_sensitivity(values, found, f"{run_of(checkpoint).name}: sensitivity to the image")
    return Report(lines, folder_files("input_sensitivity", options.out, checkpoint, content, figure))
