"""Contract of the analyses that `lightning-paf analyze NAME` runs.

An analysis is a module of this package with `analyze`, `add_arguments` and `CHECKPOINTS`:

* The first line of its docstring is its line in `lightning-paf analyze --help`.
* `CHECKPOINTS`: how many checkpoints it takes, as `nargs` of `--ckpt`: 0, 1, "*" or "+".
* `KIND`: `Task.kind` of the runs, `classifier` by default.
* `add_arguments(parser)` adds its options.
* `analyze(options, load, progress)` checks the options, loads the runs, and returns a `Report`.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lightning_paf.evaluation import Samples
from lightning_paf.nn.classifier import Classifier, Outputs
from lightning_paf.runs.config_file import run_of
from lightning_paf.utils.figures import figure_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TrainedRun(Protocol):
    """The parts of `loading.Run` that analyses use."""

    @property
    def module(self) -> Any:
        """The training module."""

    @property
    def datamodule(self) -> Any:
        """The data, as configured."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    @property
    def model(self) -> Classifier:
        """Images in [0, 1] to logits."""

    def samples(self, examples: int | None = None) -> Samples:
        """The first test images, or all."""


@torch.no_grad()
def outputs_of(run: TrainedRun, images: Tensor) -> Outputs:
    """Logits and features of images (N, C, H, W) uint8, on the device of the run."""
    parts = [run.model.outputs(part.to(run.device).float() / 255) for part in torch.split(images, 512)]
    return Outputs(torch.cat([part.logits for part in parts]), torch.cat([part.features for part in parts]))


Load = Callable[[Path], TrainedRun]
"""Loads the run of a checkpoint."""

Progress = Callable[[str], object]
"""Called with a line that describes the current step."""


@dataclass(frozen=True)
class Report:
    """Result of an analysis.

    Attributes:
        lines: Text for the terminal, at most 80 columns wide.
        files: Content of the files to write, by path.
        passed: False where the analysis found an error, for the exit status.
    """

    lines: Sequence[str]
    files: Mapping[Path, bytes]
    passed: bool = True


def add_folder(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the option `--out` of `folder_files`."""
    parser.add_argument("--out", type=Path, help=f"output folder (default: `{name}` in the checkpoint's run)")


def folder_files(name: str, folder: Path | None, checkpoint: Path, content: Any, figure: "Figure") -> dict[Path, bytes]:
    """Files `NAME.png` and `NAME.json` of an analysis, by default in the run's `NAME`."""
    path = (folder or run_of(checkpoint) / name) / name
    return {path.with_suffix(".png"): figure_png(figure), path.with_suffix(".json"): json_file(content)}


def json_file(content: Any) -> bytes:
    """Content of a JSON file."""
    return (json.dumps(content) + "\n").encode()


def table(*rows: Sequence[str]) -> list[str]:
    """Lines of a table: the first column aligned to the left, the others to the right."""
    first, *others = zip(*rows, strict=True)
    columns = [_padded(first, str.ljust), *(_padded(column, str.rjust) for column in others)]
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def _padded(column: Sequence[str], pad: Callable[[str, int], str]) -> list[str]:
    width = max(map(len, column))
    return [pad(cell, width) for cell in column]


def mean_and_range(values: Tensor) -> tuple[str, str, str]:
    """Mean, least and largest value to three digits."""
    mean, least, largest = (f"{float(value):.3g}" for value in (values.mean(), values.min(), values.max()))
    return mean, least, largest


def percent(fraction: float) -> str:
    """A fraction as in `61.5 %`."""
    return f"{100 * fraction:.1f} %"
