"""What a report shows instead of saying it: bars, curves, images, activations."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.evaluation.activation_picture import ActivationSite, draw_activations, inputs_of
from lightning_paf.evaluation.report_page import element, table
from lightning_paf.evaluation.statistics import Accuracy
from lightning_paf.functional.predictions import NO_PREDICTION
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.modes import frozen

GAIN = 10
"""How much larger a perturbation is shown than it is."""

_SHOWN_SIZE = 128
"""Pixels that the shorter side of an image has at least, so that viewers which smooth images show squares."""

_MOST_SITES = 16


@dataclass(frozen=True, eq=False)
class Example:
    """A sample that an attack broke.

    Attributes:
        id: Its number in the dataset.
        clean: Image (C, H, W) in [0, 1].
        adversarial: Image (C, H, W) in [0, 1].
        label: Its class.
        predicted: What the model says to the adversarial image.
        stage: The attack that found it.
    """

    id: int
    clean: Tensor
    adversarial: Tensor
    label: int
    predicted: int
    stage: str


def shares(parts: Sequence[tuple[str, str, int]], *, width: int = 720, height: int = 22) -> Element:
    """A bar of counts side by side.

    Args:
        parts: Name, one of robust, broken, error, empty for the colour, and count, from left to right.
        width: In units of the picture, which shrinks with the page.
        height: Likewise.
    """
    total = max(1, sum(count for _, _, count in parts))
    bar = element("svg", viewBox=f"0 0 {width} {height}", width=str(width), role="img")
    bar.set("aria-label", ", ".join(f"{name}: {count}" for name, _, count in parts))
    left = 0.0
    for name, colour, count in parts:
        length = width * count / total
        if count:
            rectangle = element("rect", element("title", f"{name}: {count}"), class_=f"fill-{colour}")
            _place(rectangle, x=left, y=0, width=max(0.5, length - 1), height=height)
            bar.append(rectangle)
        left += length
    return bar


def legend(parts: Sequence[tuple[str, str, int]]) -> Element:
    """The names, colours and counts of `shares`."""

    def entry(name: str, colour: str, count: int) -> Element:
        mark = element("rect", width="12", height="12", rx="2", class_=f"fill-{colour}")
        return element("span", element("svg", mark, viewBox="0 0 12 12", aria_hidden="true"), f"{name} {count}")

    return element("div", *(entry(*part) for part in parts), class_="legend")


def curve(points: Sequence[tuple[float, Accuracy]], marked: float, unit: str) -> Element:
    """Robust accuracy over eps, with its interval as a band.

    Args:
        points: eps and accuracy, in the order of eps.
        marked: The eps of the evaluation, drawn as an upright line.
        unit: What stands below the axis.
    """
    width, height, left, bottom = 520, 260, 52, 46
    farthest = max(max(eps for eps, _ in points), marked, 1e-12)

    def at(eps: float, value: float) -> str:
        return f"{left + (width - left - 12) * eps / farthest:.1f},{12 + (height - bottom - 12) * (1 - value):.1f}"

    drawing = element("svg", viewBox=f"0 0 {width} {height}", width=str(width), role="img", class_="curve")
    drawing.set("aria-label", "robust accuracy over eps; the table below holds the numbers")
    for percent in range(0, 101, 25):
        start, end = at(0, percent / 100), at(farthest, percent / 100)
        drawing.append(element("polyline", points=f"{start} {end}", class_="stroke-line"))
        drawing.append(_text(f"{percent} %", float(left - 8), float(start.split(",")[1]) + 4, "end"))
    for eps in np.linspace(0, farthest, 5):
        drawing.append(_text(f"{eps:.3g}", float(at(eps, 0).split(",")[0]), height - bottom + 18, "middle"))
    drawing.append(_text(unit, width / 2, height - 6, "middle"))
    band = [at(eps, value.high) for eps, value in points] + [at(eps, value.low) for eps, value in reversed(points)]
    line = [at(eps, value.value) for eps, value in points]
    drawing.append(element("polygon", points=" ".join(band), class_="fill-band"))
    drawing.append(
        element("polyline", points=f"{at(marked, 0)} {at(marked, 1)}", class_="stroke-ink", stroke_dasharray="4 4")
    )
    drawing.append(element("polyline", points=" ".join(line), class_="stroke-accent"))
    return drawing


def triptych(example: Example, names: Sequence[str]) -> Element:
    """Clean image, perturbation times `GAIN` around grey, adversarial image.

    Args:
        example: What to show.
        names: Of the classes; their numbers stand in for those that have none.
    """
    true, predicted = (class_name(label, names) for label in (example.label, example.predicted))
    difference = example.adversarial - example.clean
    pictures = {
        "clean": example.clean,
        f"change × {GAIN}": 0.5 + GAIN * difference,
        "adversarial": example.adversarial,
    }
    tiles = [
        element("div", embedded(image_png(image), f"{name} image, sample {example.id}"), element("span", name))
        for name, image in pictures.items()
    ]
    words = element("strong", f"{true} → {predicted}")
    caption = element("figcaption", words, f" · sample {example.id} · broken by {example.stage}")
    return element("figure", element("div", *tiles, class_="three"), caption)


def class_name(label: int, names: Sequence[str]) -> str:
    """Name of a class, or its number where it has none; logits that are not finite have no class."""
    if label == NO_PREDICTION:
        return "no class"
    return names[label] if 0 <= label < len(names) else f"class {label}"


def embedded(png: bytes, description: str, **attributes: str) -> Element:
    """A PNG file as an image within the page."""
    address = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return element("img", src=address, alt=description, **attributes)


def image_png(image: Tensor) -> bytes:
    """An image (C, H, W) as a PNG file: its pixels as squares; the first three channels, or grey."""
    from matplotlib.image import imsave

    channels = image[:3] if len(image) >= 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    levels = channels.detach().float().nan_to_num().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    zoom = max(1, math.ceil(_SHOWN_SIZE / min(levels.shape[:2])))
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(levels.repeat(zoom, axis=0).repeat(zoom, axis=1)), format="png")
    return file.getvalue()


@torch.no_grad()
def activations(model: nn.Module, images: Tensor) -> list[Element]:
    """A picture of the activations of a model over the inputs that reach them, and a table of their shapes.

    Args:
        model: Images to logits; nothing is shown for one without an `Activation`.
        images: Clean images (N, C, H, W) that give the inputs.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Activation)}
    with frozen(model):
        reached = inputs_of(layers, lambda: model(images))
    if not reached:
        return []
    file, shown = io.BytesIO(), list(reached)[:_MOST_SITES]
    sites = [
        ActivationSite(f"{name}\n{type(layers[name]).__name__}", layers[name], None, reached[name]) for name in shown
    ]
    draw_activations(sites, "").savefig(file, format="png")
    kinds = ", ".join(sorted({type(layers[name]).__name__ for name in reached}))
    picture = embedded(file.getvalue(), f"{kinds} over the inputs that reach it", class_="picture")
    head = ["layer", "activation", "α", "β", "largest slope", "largest curvature", "mean output on x < 0"]
    return [picture, table("Activations", head, [[name, *_shape(layers[name])] for name in reached], words=2)]


def _shape(activation: Activation) -> list[str]:
    shape = activation.shape()
    quantities = (shape.max_slope, shape.max_curvature, shape.mean_on_negative)
    return [
        type(activation).__name__,
        *(_parameter(getattr(activation, name, None)) for name in ("alpha", "beta")),
        *(f"{value:.3g}" if math.isfinite(value) else "∞" for value in quantities),
    ]


def _parameter(values: object) -> str:
    """`0.52`, or `0.52 (0.1 … 0.9)` for one with a value in each channel."""
    if not isinstance(values, Tensor):
        return "–"
    spread = f" ({float(values.min()):.3g} … {float(values.max()):.3g})" if values.numel() > 1 else ""
    return f"{float(values.mean()):.3g}{spread}"


def confusion(flips: NDArray[np.int64], names: Sequence[str]) -> Element:
    """How often each class (rows) became which other (columns) under attack.

    Args:
        flips: Counts (classes, classes).
        names: Of the classes.
    """
    most = max(1, int(flips.max()))

    def cell(count: int) -> Element:
        return element(
            "td", str(count) if count else "·", class_="number hit", style=f"--share: {70 * count / most:.0f}%"
        )

    columns = [element("th", class_name(label, names), scope="col", class_="number") for label in range(len(flips))]
    head = element("thead", element("tr", element("th", "from ↓ to →", scope="col", class_="word"), *columns))
    rows = [
        element("tr", element("th", class_name(label, names), scope="row", class_="word"), *map(cell, row.tolist()))
        for label, row in enumerate(flips)
    ]
    whole = element("table", head, element("tbody", *rows))
    return element("div", whole, class_="wide", role="region", tabindex="0", aria_label="Classes under attack")


def _text(words: str, x: float, y: float, anchor: str) -> Element:
    return element("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _place(shape: Element, **numbers: float) -> None:
    for name, value in numbers.items():
        shape.set(name, f"{value:.2f}")
