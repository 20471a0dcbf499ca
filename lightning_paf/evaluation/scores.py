"""Scores of samples, such as PSNR or Dice: state, means and comparison."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.evaluation.identity import content_fingerprint, differences
from lightning_paf.evaluation.statistics import Mean, mean_interval
from lightning_paf.utils.figures import COLOURS, REFERENCE, open_figure
from lightning_paf.utils.files import create_whole, explained, parse_json, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Mapping[str, float]]
"""Values of a sample by condition, such as `pgd`, and score, such as `dice`."""
Limits = Mapping[str, tuple[float, float]]
"""Smallest and largest value of a score."""


class ScoreState:
    """Values of samples in a folder, which several processes can share.

    One JSON file for each sample, created atomically and never changed. It names the fingerprint of its sample, so that
    a record of another sample is ignored, like a damaged one. Each identity has its own subfolder.

    Args:
        folder: Folder of all states.
        identity: Everything that the values depend on apart from the sample, as plain values.

    Raises:
        ValueError: The folder cannot be read or written (in methods).
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder / content_fingerprint(identity)[:16]

    def clear(self) -> None:
        """Remove all records."""
        with explained(self.folder, "a state folder"):
            for path in self.folder.glob("*.json"):
                path.unlink(missing_ok=True)

    def read(self, number: int, sample: str) -> Row | None:
        """Return the record of a sample; None if it is missing, damaged or of another one."""
        try:
            with explained(self.folder, "a state folder"):
                content = parse_json(self._path(number).read_bytes()) if self._path(number).exists() else {}
            found: Row | None = content["row"] if content.get("sample") == sample else None
        except (ValueError, AttributeError, KeyError):
            return None
        return found

    def write(self, number: int, sample: str, row: Row) -> Row:
        """Add a record, and return the valid one: this, or an earlier one."""
        data = json.dumps({"sample": sample, "row": row}).encode()
        with explained(self.folder, "a state folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if create_whole(self._path(number), data):
                return row
            if (first := self.read(number, sample)) is not None:
                return first
            write_whole(self._path(number), data)
        return row

    def _path(self, number: int) -> Path:
        return self.folder / f"sample-{number:05}.json"


def summary(rows: Sequence[Row], limits: Limits) -> dict[str, Any]:
    """Average over samples, with Student's 95 % intervals.

    Args:
        rows: Values of each sample, with the same conditions and scores.
        limits: Values to which the intervals of a score are clipped.

    Returns:
        For each condition and score: `value`, `low`, `high` (None for a single sample), and `values`, one per sample.
    """
    return {
        condition: {score: _mean([row[condition][score] for row in rows], limits.get(score)) for score in scores}
        for condition, scores in rows[0].items()
    }


def text(result: Mapping[str, Any]) -> str:
    """Format the scores of one condition in a `summary`."""
    return ", ".join(f"{score} {_shown(Mean(*(mean[end] for end in _ENDS)))}" for score, mean in result.items())


@dataclass(frozen=True)
class ScoreRow:
    """One score of one model under one condition.

    Attributes:
        condition: Such as `clean` or `pgd`.
        score: Such as `dice`.
        model: Name of the run.
        mean: Mean over the samples.
        difference: Mean of the paired differences to the first model; None for the first model.
    """

    condition: str
    score: str
    model: str
    mean: Mean
    difference: Mean | None

    def texts(self) -> tuple[str, ...]:
        """Cells of a table; * marks a difference whose interval does not contain 0."""
        mark = " *" if self.difference and (self.difference.low > 0 or self.difference.high < 0) else ""
        difference = _shown(self.difference, "+") + mark if self.difference else "-"
        return f"{self.condition} {self.score}", self.model, _shown(self.mean), difference

    def content(self) -> dict[str, Any]:
        """Return plain values; None for an unknown end."""
        means = {"": self.mean, "difference_": self.difference or Mean(*3 * (math.nan,))}
        ends = {f"{name}{end}": value for name, mean in means.items() for end, value in _finite(asdict(mean)).items()}
        return {"condition": self.condition, "score": self.score, "model": self.model, **ends}


def compare_scores(models: Sequence[str], results: Sequence[Mapping[str, Any]]) -> list[ScoreRow]:
    """Compare the values of the same samples for each model with the first.

    Args:
        models: Names.
        results: Contents of their result files.

    Raises:
        ValueError: Other samples, attacks or settings than those of the first.
    """
    for model, result in zip(models, results, strict=True):
        parts = ("kind", "data", "samples", "settings")
        if found := differences(*({part: r.get(part) for part in parts} for r in (result, results[0]))):
            raise ValueError(
                f"Results must be of the same samples, attacks and settings, got for {model} and {models[0]}: "
                f"{'; '.join(f'{name} is {a} and {b}' for name, a, b in found)}. Run test with the same options."
            )
    rows = []
    for condition, scores in results[0]["results"].items():
        for score, first in scores.items():
            for number, (model, result) in enumerate(zip(models, results, strict=True)):
                values = result["results"][condition][score]["values"]
                paired = [value - old for value, old in zip(values, first["values"], strict=True)]
                difference = mean_interval(paired) if number else None
                rows.append(ScoreRow(condition, score, model, mean_interval(values), difference))
    return rows


def draw_scores(rows: Sequence[ScoreRow]) -> "Figure":
    """Draw the differences to the first model, a panel for each score."""
    later = [row for row in rows if row.difference]
    names, models = ([*dict.fromkeys(values)] for values in ([r.score for r in later], [r.model for r in later]))
    conditions = [*dict.fromkeys(row.condition for row in later)]
    with open_figure(4.5 * len(names), 1.2 + 0.3 * len(conditions) * len(models)) as figure:
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for number, model in enumerate(models):
                of = {r.condition: r.difference for r in later if (r.score, r.model) == (name, model) and r.difference}
                places = [conditions.index(condition) + 0.6 * (number + 0.5) / len(models) - 0.3 for condition in of]
                values = [mean.value for mean in of.values()]
                widths = [mean.high - mean.value for mean in of.values()]
                axes.errorbar(values, places, xerr=widths, fmt="o", capsize=3, color=COLOURS[number], label=model)
            axes.axvline(0, **REFERENCE)
            axes.set(title=f"{name}, minus {rows[0].model}", yticks=range(len(conditions)), yticklabels=conditions)
            axes.set_ylim(len(conditions) - 0.5, -0.5)
            axes.grid(axis="x")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


def score_result(path: Path) -> dict[str, Any] | None:
    """Read a result file with scores, or that of a run folder; None without one."""
    files = [path] if path.is_file() else sorted([*path.glob("*.json"), *(path / "test").glob("*.json")])
    for file in files:
        try:
            content = parse_json(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and {"kind", "samples", "settings", "results"} <= content.keys():
            return content
    return None


_ENDS = ("value", "low", "high")


def _mean(values: Sequence[float], limits: tuple[float, float] | None) -> dict[str, Any]:
    low, high = limits or (-math.inf, math.inf)
    mean = {end: min(max(value, low), high) for end, value in asdict(mean_interval(values)).items()}
    return _finite(mean) | {"values": list(values)}


def _finite(mean: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON does not have."""
    return {end: value if math.isfinite(value) else None for end, value in mean.items()}


def _shown(mean: Mean, sign: str = "") -> str:
    digits = 2 if mean.value >= 10 else 3
    known = [end for end in asdict(mean).values() if end is not None and not math.isnan(end)]
    value, *ends = (f"{end:{sign}.{digits}f}" for end in known)
    return f"{value} [{', '.join(ends)}]" if ends else value
