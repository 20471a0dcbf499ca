"""Images and figures of a report, as PNG data."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.evaluation.statistics import Accuracy
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.activations.plot import ActivationSite, draw_activations, inputs_of
from lightning_paf.nn.modes import frozen
from lightning_paf.utils.figures import REFERENCE, draw_accuracy, figure_png, open_figure

GAIN = 10
"""Factor by which perturbations are enlarged."""

_SHOWN_SIZE = 128
"""Minimum length of the shorter side of a shown image, in pixels.

Viewers that smooth images then keep pixels square."""

_MAX_SITES = 16


@dataclass(frozen=True, eq=False)
class Example:
    """A fooled sample.

    Attributes:
        id: Index in the dataset.
        clean: Image (C, H, W) in [0, 1].
        adversarial: Image (C, H, W) in [0, 1].
        label: True class.
        predicted: Prediction for the adversarial image.
        sub_attack: Label of the sub-attack that found it.
    """

    id: int
    clean: Tensor
    adversarial: Tensor
    label: int
    predicted: int
    sub_attack: str


def tiles(example: Example) -> dict[str, bytes]:
    """Draw an example as PNG files, by name.

    The perturbation is multiplied by `GAIN`, and grey where it is zero.
    """
    perturbation = 0.5 + GAIN * (example.adversarial - example.clean)
    images = {"clean": example.clean, f"perturbation × {GAIN}": perturbation, "adversarial": example.adversarial}
    return {name: image_png(image) for name, image in images.items()}


def data_address(png: bytes) -> str:
    """Data URL of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def image_png(image: Tensor) -> bytes:
    """Draw an image (C, H, W) as a PNG file, with its pixels as squares.

    Images with fewer than three channels are grey; only the first three are drawn.
    """
    from matplotlib.image import imsave

    channels = image[:3] if len(image) >= 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    levels = channels.detach().float().nan_to_num().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    zoom = max(1, math.ceil(_SHOWN_SIZE / min(levels.shape[:2])))
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(levels.repeat(zoom, axis=0).repeat(zoom, axis=1)), format="png")
    return file.getvalue()


def curve_figure(points: Sequence[tuple[float, Accuracy]], evaluated: float, norm: str) -> bytes:
    """PNG file of robust accuracy over eps.

    Args:
        points: eps and accuracy, in the order of eps.
        evaluated: eps of the evaluation, marked by a line.
        norm: Name of the norm, for the axis.
    """
    with open_figure(6.4, 3.6) as figure:
        axes = figure.add_subplot()
        eps, accuracies = [eps for eps, _ in points], [accuracy for _, accuracy in points]
        unit = f"eps ({norm}, pixels in [0, 1])"
        draw_accuracy(axes, eps, accuracies, "robust accuracy", unit, marker="o", markersize=5)
        axes.axvline(evaluated, **REFERENCE, label="eps of this evaluation")
        axes.set_xlim(left=0)
        axes.legend()
    return figure_png(figure)


@torch.no_grad()
def activation_figure(model: nn.Module, images: Tensor) -> dict[str, Any] | None:
    """Draw the activations of a model over their inputs.

    Args:
        model: Images to logits.
        images: Clean images (N, C, H, W) in [0, 1].

    Returns:
        `png`, `kinds` (names of the classes) and `rows` (name, class and shape of each); None for a model without an
        `Activation`.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Activation)}
    with frozen(model):
        inputs = inputs_of(layers, lambda: model(images))
    if not inputs:
        return None
    kinds = {name: type(layers[name]).__name__ for name in inputs}
    sites = [ActivationSite(f"{name}\n{kinds[name]}", layers[name], None, x) for name, x in inputs.items()]
    return {
        "png": figure_png(draw_activations(sites[:_MAX_SITES], "")),
        "kinds": ", ".join(sorted({*kinds.values()})),
        "rows": [(name, kind, *_shape(layers[name])) for name, kind in kinds.items()],
    }


def _shape(activation: Activation) -> list[str]:
    shape = activation.shape()
    quantities = (shape.max_slope, shape.max_curvature, shape.mean_on_negative)
    parameters = [_parameter(getattr(activation, name, None)) for name in ("alpha", "beta")]
    return parameters + [f"{value:.3g}" if math.isfinite(value) else "∞" for value in quantities]


def _parameter(values: object) -> str:
    """Format as `0.52`, or as `0.52 (0.1 … 0.9)` if each channel has a value."""
    if not isinstance(values, Tensor):
        return "–"
    spread = f" ({float(values.min()):.3g} … {float(values.max()):.3g})" if values.numel() > 1 else ""
    return f"{float(values.mean()):.3g}{spread}"
