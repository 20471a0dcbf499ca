"""Activations of channels, clean against adversarial (Yan et al., 2021)."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_paf.analysis.base import Load, Progress, Report, add_folder, folder_files, table
from lightning_paf.attacks import radius_text
from lightning_paf.evaluation import Samples
from lightning_paf.nn.classifier import Classifier
from lightning_paf.runs.config_file import run_of
from lightning_paf.specs import class_name
from lightning_paf.utils.arguments import number, positive
from lightning_paf.utils.figures import BLUE, REFERENCE, VERMILION, open_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = 1

AT_ONCE = 512
"""Images evaluated at once."""


@dataclass(frozen=True, eq=False)
class ChannelActivations:
    """Mean activations of the channels before the last linear layer.

    Channels are sorted by their weight for a class, the largest first. In a ResNet an activation is the spatial mean of
    a channel.

    Attributes:
        weight: Weights for the class (F,), descending.
        clean: Means over clean images (F,).
        adversarial: Means over adversarial images (F,).
    """

    weight: Tensor
    clean: Tensor
    adversarial: Tensor

    def means(self, relevant: bool) -> tuple[int, float, float]:
        """Number of channels with a positive weight or not, and their two means."""
        chosen = (self.weight > 0) == relevant
        return int(chosen.sum()), float(self.clean[chosen].mean()), float(self.adversarial[chosen].mean())


def channel_activations(model: Classifier, x: Tensor, x_adv: Tensor, label: int) -> ChannelActivations:
    """Compute mean activations.

    Args:
        model: Classifier in eval mode whose last layer is linear.
        x: Images (N, C, H, W) of a class.
        x_adv: Adversarial images (N, C, H, W).
        label: The class.
    """
    weight, order = model.head.weight[label].detach().sort(descending=True)
    with torch.no_grad():
        means = [
            torch.cat([model.outputs(part).features for part in torch.split(images, AT_ONCE)]).mean(0)[order]
            for images in (x, x_adv)
        ]
    return ChannelActivations(weight, *means)


def draw_activations(found: ChannelActivations, headline: str) -> "Figure":
    """Draw both means over the channels, and the sign change of the weights."""
    with open_figure(8, 4, headline) as figure:
        axes = figure.subplots()
        channels = range(len(found.weight))
        axes.fill_between(channels, found.clean.cpu(), color=BLUE, alpha=0.4, step="mid", label="clean", linewidth=0)
        axes.step(channels, found.adversarial.cpu(), where="mid", color=VERMILION, label="adversarial", linewidth=1.0)
        axes.axvline(int((found.weight > 0).sum()) - 0.5, **REFERENCE, label="weight 0")
        axes.set(xlabel="channel, the largest weight for the class first", ylabel="mean activation")
        axes.margins(x=0)
        axes.legend()
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze channel-activations`."""
    parser.add_argument("--label", type=number(int, least=0), default=0, help="class of the images (default: 0)")
    parser.add_argument("--examples", type=positive, default=200, help="number of test images (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    add_folder(parser, "channel_activations")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Compare activations of a class, clean and under the training attack."""
    (checkpoint,) = options.ckpt
    run = load(checkpoint)
    x = _images_of(run.samples(), options.label, options.examples)
    progress("training attack")
    attack = run.module.attack
    torch.manual_seed(options.seed)
    labels = torch.full((len(x),), options.label, device=x.device)
    parts = zip(torch.split(x, AT_ONCE), torch.split(labels, AT_ONCE), strict=True)
    x_adv = torch.cat([attack(run.model, *part) for part in parts])
    found = channel_activations(run.model, x, x_adv, options.label)
    headline = f"{type(attack).__name__} {attack.norm} eps {radius_text(attack.eps)}"
    named = class_name(run.datamodule.spec.class_names, options.label)
    rows = {name: found.means(relevant) for name, relevant in (("positive", True), ("negative", False))}
    lines = [
        f"Mean activations of {len(x)} images of {named}, {headline}",
        *table(
            ("weight for the class", "channels", "clean", "adversarial"),
            *((name, str(count), f"{clean:.4f}", f"{adv:.4f}") for name, (count, clean, adv) in rows.items()),
        ),
    ]
    content = {name: getattr(found, name).tolist() for name in ("weight", "clean", "adversarial")}
    figure = draw_activations(found, f"{run_of(checkpoint).name}: {named}, {headline}")
    return Report(lines, folder_files("channel_activations", options.out, checkpoint, content, figure))


def _images_of(samples: Samples, label: int, most: int) -> Tensor:
    """The first test images of a class."""
    found: list[Tensor] = []
    for ids in np.array_split(samples.ids, -(-len(samples) // AT_ONCE)):
        x, y = samples.fetch(ids)
        found.append(x[y == label])
        if sum(map(len, found)) >= most:
            break
    images = torch.cat(found)[:most]
    if len(images) == 0:
        raise ValueError(f"The test images must include class {label}, got none of {len(samples)}. Pass --label 0.")
    return images
