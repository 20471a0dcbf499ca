"""Accuracy under common corruptions, and the mean corruption error."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_paf.analysis.base import Load, Progress, Report, TrainedRun, add_folder, folder_files, table
from lightning_paf.data.image_batches import as_floats
from lightning_paf.functional.corruptions import SEVERITIES
from lightning_paf.functional.predictions import misclassified
from lightning_paf.runs.config_file import run_of
from lightning_paf.utils.arguments import positive
from lightning_paf.utils.figures import draw_percent, open_figure
from lightning_paf.utils.files import parse_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = 1

COUNT = 5
"""Number of severities."""

EXTRA = frozenset({"speckle_noise", "gaussian_blur", "spatter", "saturate"})
"""Published corruptions that the mean leaves out, as in the benchmark."""

_AT_ONCE = 512

Batches = Iterator[tuple[Tensor, Tensor]]


class PublishedCorruptions:
    """Corrupted test images of Hendrycks & Dietterich 2019, such as CIFAR-10-C.

    The folder holds `labels.npy` and one `NAME.npy` for each corruption: the test set at severity 1, then at 2, to 5.

    Args:
        folder: The unpacked files.
        shape: Shape (C, H, W) of the images of the model.
        classes: Number of classes.
        examples: Number of images of each severity; None for all.

    Raises:
        ValueError: A file is missing or damaged, or has another shape or type; labels differ between severities.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], classes: int, examples: int | None = None) -> None:
        labels = _array(folder / "labels.npy")
        fits = labels.ndim == 1 and len(labels) and len(labels) % COUNT == 0 and labels.dtype.kind in "iu"
        rows = labels.reshape(COUNT, -1).astype(np.int64) if fits else np.full((1, 1), -1)
        if rows.min() < 0 or rows.max() >= classes or not (rows == rows[0]).all():
            raise ValueError(
                f"{folder / 'labels.npy'} must hold labels below {classes}, the same ones {COUNT} times, got "
                f"{labels.dtype} of shape {labels.shape}. Unpack the published files again, or pass another run."
            )
        self.labels, self.size = torch.from_numpy(rows[0]), len(rows[0])
        self.examples = min(examples or self.size, self.size)
        paths = sorted(path for path in folder.glob("*.npy") if path.stem != "labels")
        if not paths:
            raise ValueError(f"{folder} must hold files such as fog.npy, got none. Unpack the published files there.")
        self.images = {path.stem: _array(path) for path in paths}
        expected = (len(labels), *shape[1:], shape[0])
        for path in paths:
            found = self.images[path.stem]
            if found.shape != expected or found.dtype != np.uint8:
                raise ValueError(
                    f"{path} must hold uint8 images of shape {expected}, got {found.dtype} of shape {found.shape}. "
                    "Pass the files of the data of this run."
                )

    def batches(self, name: str, severity: int) -> Batches:
        """Images (n, C, H, W) in [0, 1] and labels (n,) of a severity from 1."""
        first = (severity - 1) * self.size
        for start in range(0, self.examples, _AT_ONCE):
            end = min(start + _AT_ONCE, self.examples)
            images = torch.from_numpy(np.array(self.images[name][first + start : first + end]))
            yield as_floats(images), self.labels[start:end]


def made_on_the_spot(run: TrainedRun, examples: int | None, seed: int) -> Callable[[str, int], Batches]:
    """Batches of test images by name of a corruption and severity from 1.

    The corruptions are those of `SEVERITIES`. The noise depends on the seed, the corruption and the severity only.
    """
    samples = run.samples(examples)

    def batches(name: str, severity: int) -> Batches:
        corrupt, levels = SEVERITIES[name]
        number = [*SEVERITIES].index(name) * COUNT + severity
        with torch.random.fork_rng():
            torch.manual_seed(seed * len(SEVERITIES) * (COUNT + 1) + number)
            for start in range(0, len(samples), _AT_ONCE):
                x, y = samples.fetch(samples.ids[start : start + _AT_ONCE])
                yield corrupt(x, levels[severity - 1]), y

    return batches


@torch.no_grad()
def error_of(run: TrainedRun, batches: Batches) -> float:
    """Fraction of misclassified images."""
    wrong = count = 0
    for x, y in batches:
        wrong += int(misclassified(run.model(x.to(run.device)), y.to(run.device)).sum())
        count += len(y)
    return wrong / count


def mean_error(errors: Mapping[str, list[float]], baseline: Mapping[str, list[float]] | None = None) -> float:
    """Mean corruption error.

    Args:
        errors: Errors at the severities, by corruption; at least one.
        baseline: Those of another network. The sum over the severities is then divided by that of the baseline, as in
            Hendrycks & Dietterich 2019; without it, the mean of all errors.

    Raises:
        ValueError: The baseline lacks a corruption, or has no error.
    """
    if baseline is None:
        return float(np.mean([*errors.values()]))
    if lacking := [name for name in errors if not sum(baseline.get(name, []))]:
        raise ValueError(f"--baseline must have an error for {lacking[0]}, got none. Pass a result of the same data.")
    return float(np.mean([sum(errors[name]) / sum(baseline[name]) for name in errors]))


def draw_errors(errors: Mapping[str, list[float]], headline: str) -> "Figure":
    """Draw the error of each corruption (rows) at each severity."""
    severities = [str(number + 1) for number in range(COUNT)]
    with open_figure(6.4, max(3.2, 0.32 * len(errors) + 1.4), headline) as figure:
        values, names = np.array([*errors.values()]), [name.replace("_", " ") for name in errors]
        draw_percent(figure, values, (names, severities), ("corruption", "severity"), "error (%)")
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze corruptions`."""
    parser.add_argument(
        "--data.corruptions",
        dest="corruptions",
        type=Path,
        metavar="FOLDER",
        help="npy files of CIFAR-10-C or CIFAR-100-C (default: corruptions made on the spot)",
    )
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="corruptions.json of another run, to divide by")
    parser.add_argument("--examples", type=positive, help="number of images of each severity (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise made on the spot")
    add_folder(parser, "corruptions")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Evaluate a run on corrupted test images."""
    (checkpoint,) = options.ckpt
    baseline = None if options.baseline is None else _baseline(options.baseline)
    run = load(checkpoint)
    names, batches = [*SEVERITIES], made_on_the_spot(run, options.examples, options.seed)
    if options.corruptions is not None:
        spec = run.datamodule.spec
        published = PublishedCorruptions(options.corruptions, spec.shape, spec.num_classes, options.examples)
        names, batches = [*published.images], published.batches
    errors: dict[str, list[float]] = {}
    for name in names:
        progress(f"{name}, {len(errors) + 1} of {len(names)}")
        errors[name] = [error_of(run, batches(name, severity + 1)) for severity in range(COUNT)]
    source = "made on the spot" if options.corruptions is None else options.corruptions.resolve().name
    extra = set() if options.corruptions is None else EXTRA & errors.keys()
    counted = {name: row for name, row in errors.items() if name not in extra} or errors
    mean = mean_error(counted)
    found: dict[str, Any] = {"source": source, "errors": errors, "counted": [*counted], "mean_error": mean}
    lines = [f"Error in % under corruptions ({source})"]
    rows = ((name, *(f"{100 * error:.1f}" for error in (*row, sum(row) / COUNT))) for name, row in errors.items())
    lines += table(("corruption", *map(str, range(1, COUNT + 1)), "mean"), *rows)
    lines.append(f"Mean corruption error {100 * mean:.1f} %, over {len(counted)} corruptions")
    lines += [f"without {', '.join(sorted(errors.keys() - counted.keys()))}"] if len(counted) < len(errors) else []
    if baseline is not None:
        found["relative_error"] = mean_error(counted, baseline)
        lines.append(f"Relative to the baseline {100 * found['relative_error']:.1f} %")
    figure = draw_errors(errors, f"{run_of(checkpoint).name}: error under corruptions")
    return Report(lines, folder_files("corruptions", options.out, checkpoint, found, figure))


def _array(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} must be a file of the published corruptions, got {error}. Unpack the files again."
        ) from error
    return array


def _baseline(path: Path) -> Mapping[str, list[float]]:
    try:
        errors: Mapping[str, list[float]] = parse_json(path.read_text())["errors"]
        return {name: [float(error) for error in row] for name, row in errors.items()}
    except (OSError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"--baseline must be a file that `analyze corruptions` wrote, got {path}. Pass its corruptions.json."
        ) from error
