"""Near copies of real images among synthetic ones."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_paf.analysis.base import percent, table
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.functional.neighbours import nearest
from lightning_paf.utils.figures import BLUE, REFERENCE, VERMILION, open_figure, show_image

if TYPE_CHECKING:
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
    pool: Tensor,
    train: Tensor,
    test: Tensor,
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
        pool: Samples (N, d), pixels as uint8 or features.
        train: Training images (M, d), of the same type.
        test: Test images (T, d), of the same type.
        quantile: Fraction of test images within the threshold, in [0, 1].
        threshold: Replaces the threshold of `quantile`, in units of the distances.
        scale: Factor of all distances.
        device: Device of the search.
        advance: Called with the number of images that were completed since the last call; 2 N + M + T in total.
    """

    def matched(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        distances, indices = nearest(queries, references, device, advance)
        return distances.double() * scale, indices

    test_to_train, train_to_test = matched(test, train)[0], matched(train, test)[0]
    limit = float(np.quantile(test_to_train.numpy(), quantile)) if threshold is None else threshold
    return {
        "training": Matches(*matched(pool, train), test_to_train, limit),
        "test": Matches(*matched(pool, test), train_to_test, limit),
    }


def leak_table(leaks: Mapping[str, Leaks]) -> list[str]:
    """Lines of a table with a row for each space and set of real images."""
    head = ("near copies of", "up to", "samples", "95 % interval", "real images")
    rows = [
        (f"{name} images, {space}", f"{m.threshold:.4g}", f"{m.rate.correct:,}", str(m.rate), percent(m.expected))
        for space, found in leaks.items()
        for name, m in found.items()
    ]
    return ["", *table(head, *rows)]


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
                axes.legend(fontsize="small")
            panels[-1, column].set_xlabel(units[space])
    return figure


def closest(found: Leaks) -> dict[str, list[int]]:
    """Samples that are closest to a training and to a test image, by set."""
    return {name: matches.distances.argsort(stable=True)[:SHOWN].tolist() for name, matches in found.items()}


def draw_pairs(leaks: Mapping[str, Leaks], images: Mapping[str, NDArray[np.uint8]]) -> "Figure":
    """Draw the samples that are closest to real images, with their neighbours.

    Args:
        leaks: By space.
        images: `pool`, `training` and `test`, each uint8 (N, H, W, C) with 1 or 3 channels.
    """
    rows = ("sample", "training", "test")
    with open_figure(2 * SHOWN + 1.0, 4.2 * len(leaks)) as figure:
        for block, (space, found) in zip(
            figure.subfigures(len(leaks), 1, squeeze=False)[:, 0], leaks.items(), strict=True
        ):
            block.suptitle(f"{space}: samples closest to a training image (left) and to a test image (right)")
            panels = block.subplots(len(rows), 2 * SHOWN, squeeze=False)
            samples = [sample for name in ("training", "test") for sample in closest(found)[name]]
            for column in range(2 * SHOWN):
                for row in range(len(rows)):
                    panels[row, column].axis("off")
            for column, sample in enumerate(samples):
                show_image(panels[0, column], _shown(images["pool"][sample]), f"sample {sample}")
                for row, (name, matches) in enumerate(found.items(), start=1):
                    index, distance = int(matches.indices[sample]), float(matches.distances[sample])
                    show_image(panels[row, column], _shown(images[name][index]), f"{name} {index}\n{distance:.3g}")
    return figure


def _shown(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (H, W, 1 or 3) as (H, W, 3)."""
    return np.broadcast_to(image, (*image.shape[:2], 3))
