"""Near copies of real images among synthetic ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_paf.analysis.base import table
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.functional.neighbours import nearest
from lightning_paf.utils.figures import BLUE, REFERENCE, VERMILION, open_figure, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 6
"""Pairs in a row of `draw_pairs`."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Nearest real images of synthetic samples.

    Attributes:
        distances: To the nearest image of a set of real images, (N,).
        indices: Its index in the set, (N,) int64.
        real: Distances of other real images to their nearest image of the set, (R,).
        threshold: Largest distance of a near copy.
    """

    distances: Tensor
    indices: Tensor
    real: Tensor
    threshold: float

    @property
    def near(self) -> Tensor:
        """Mask of the near copies (N,)."""
        return self.distances <= self.threshold

    @property
    def rate(self) -> Accuracy:
        """Fraction of near copies, with its exact 95 % interval."""
        return exact_accuracy(int(self.near.sum()), len(self.distances))

    @property
    def expected(self) -> float:
        """Fraction of other real images that are as near, in [0, 1]."""
        return float((self.real <= self.threshold).double().mean())


Leaks = Mapping[str, Matches]
"""Matches with the `training` and the `test` images."""


def find_leaks(
    vectors: Mapping[str, Tensor],
    quantile: float = 0.01,
    threshold: float | None = None,
    scale: float = 1.0,
    device: torch.device | str = "cpu",
    advance: Callable[[int], object] = lambda rows: None,
) -> Leaks:
    """Find the nearest training and test image of every sample.

    A near copy is nearer to a real image than all but the fraction `quantile` of the test images are to their nearest
    training image.

    Args:
        vectors: Pixels as uint8, or features: `pool` (N, d), `training` (M, d), `test` (T, d).
        quantile: Fraction of test images within the threshold, in [0, 1].
        threshold: Replaces the threshold of `quantile`, in units of the distances.
        scale: Factor of all distances.
        device: Device of the search.
        advance: Called with the number of images that were completed since the last call; 2 N + M + T in total.
    """

    def matched(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        distances, indices = nearest(queries, references, device, advance)
        return distances.double() * scale, indices

    pool, train, test = (vectors[name] for name in ("pool", "training", "test"))
    test_to_train, train_to_test = matched(test, train)[0], matched(train, test)[0]
    limit = float(np.quantile(test_to_train.numpy(), quantile)) if threshold is None else threshold
    return {
        "training": Matches(*matched(pool, train), test_to_train, limit),
        "test": Matches(*matched(pool, test), train_to_test, limit),
    }


def near_test(leaks: Mapping[str, Leaks]) -> Tensor:
    """Mask of the samples that are near copies of a test image in any space (N,)."""
    return torch.stack([found["test"].near for found in leaks.values()]).any(0)


def leak_table(leaks: Mapping[str, Leaks]) -> list[str]:
    """Lines of a table with a row for each space and set of real images."""
    head = ("near copies of", "up to", "samples", "rate, 95 % interval", "of real images")
    rows = [
        (f"{name}, {space}", f"{m.threshold:.4g}", f"{m.rate.correct:,}", _rate(m.rate), f"{100 * m.expected:.2f} %")
        for space, found in leaks.items()
        for name, m in found.items()
    ]
    return ["", *table(head, *rows)]


def _rate(rate: Accuracy) -> str:
    return f"{100 * rate.value:.2f} % [{100 * rate.low:.2f}, {100 * rate.high:.2f}]"


def leak_content(leaks: Mapping[str, Leaks]) -> dict[str, Any]:
    """Thresholds, rates and the closest pairs, for a JSON file."""
    return {
        space: {
            name: {
                "threshold": matches.threshold,
                "near_copies": asdict(matches.rate),
                "expected": matches.expected,
                "closest": [
                    {
                        "sample": sample,
                        "index": int(matches.indices[sample]),
                        "distance": float(matches.distances[sample]),
                    }
                    for sample in closest(found)[name]
                ],
            }
            for name, matches in found.items()
        }
        for space, found in leaks.items()
    }


def draw_distances(leaks: Mapping[str, Leaks], units: Mapping[str, str]) -> "Figure":
    """Draw histograms of the distances of samples and real images to real ones.

    Args:
        leaks: By space.
        units: Label of the x axis, by space.
    """
    with open_figure(5.2 * len(leaks), 6.0) as figure:
        panels = figure.subplots(2, len(leaks), squeeze=False, sharex="col")
        for column, (space, found) in enumerate(leaks.items()):
            end = max(float(part.max()) for matches in found.values() for part in (matches.distances, matches.real))
            for axes, (name, matches) in zip(panels[:, column], found.items(), strict=True):
                other = {"training": "test", "test": "training"}[name]
                style = {"bins": 60, "range": (0, end or 1.0), "density": True}
                axes.hist(matches.distances.numpy(), color=BLUE, alpha=0.6, label="synthetic samples", **style)
                label = f"real images ({other} set)"
                axes.hist(matches.real.numpy(), color=VERMILION, histtype="step", linewidth=1.6, label=label, **style)
                axes.axvline(matches.threshold, **REFERENCE, label="threshold of near copies")
                axes.set_title(f"{space}: distance to the nearest {name} image")
                axes.set(ylabel="density")
                axes.legend(fontsize="small", loc="upper right")
            panels[-1, column].set_xlabel(units[space])
    return figure


def closest(found: Leaks) -> dict[str, list[int]]:
    """Samples that are closest to a training and to a test image, by set."""
    return {name: matches.distances.argsort(stable=True)[:SHOWN].tolist() for name, matches in found.items()}


def draw_pairs(leaks: Mapping[str, Leaks], images: Mapping[str, NDArray[np.uint8]]) -> "Figure":
    """Draw the samples that are closest to real images, with their neighbours.

    Args:
        leaks: By space.
        images: `pool`, `training` and `test` images, each uint8 (N, H, W, C).
    """
    rows = ("sample", "training", "test")
    with open_figure(2 * SHOWN + 1.0, 4.5 * len(leaks)) as figure:
        rows = iter(figure.subplots(3 * len(leaks), 1))
        for space, found in leaks.items():
            samples = [sample for name in ("training", "test") for sample in closest(found)[name]]
            title = f"{space}: samples closest to a training image (left) and to a test image (right)\n\n"
            _draw_row(next(rows), images["pool"][samples], [f"sample {sample}" for sample in samples], title)
            for name, matches in found.items():
                pairs = zip(matches.indices[samples].tolist(), matches.distances[samples].tolist(), strict=True)
                texts = [f"{name} {index}\n{distance:.3g}" for index, distance in pairs]
                _draw_row(next(rows), images[name][matches.indices[samples].numpy()], texts)
    return figure


def _draw_row(axes: "Axes", images: NDArray[np.uint8], texts: Sequence[str], title: str = "") -> None:
    """Draw images (N, H, W, C) next to each other, each below its text."""
    gap = max(1, images.shape[2] // 8)
    colours = images[..., :3] if images.shape[3] >= 3 else images[..., :1]
    padded = np.pad(colours, ((0, 0), (0, 0), (gap, gap), (0, 0)), constant_values=255)
    strip = np.concatenate(padded, axis=1)
    show_image(axes, np.broadcast_to(strip, (*strip.shape[:2], 3)), title)
    for column, text in enumerate(texts):
        axes.text((column + 0.5) * padded.shape[2], -gap, text, ha="center", va="bottom", fontsize="small")
