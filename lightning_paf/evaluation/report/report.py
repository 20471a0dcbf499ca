"""One evaluation result as one self-contained HTML page."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf import __version__
from lightning_paf.evaluation.report.figures import Example, activation_figure, curve_figure, data_address, tiles
from lightning_paf.evaluation.result import EvaluationResult, Outcome
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.utils.files import explained, write_whole

NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}

MOST_CLASSES = 20
"""Classes in the table of predictions under attack; with more, those that it concerns most."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, eq=False)
class Supplement:
    """Parts of a report that the result does not hold. A missing part has no section.

    Attributes:
        title: Name of the run.
        class_names: In the order of the labels.
        examples: Fooled samples to show.
        flips: Number of fooled samples of each class (rows) that were predicted as each other class (columns).
        model: Images to logits; its activations are drawn.
        images: Clean images (N, C, H, W) in [0, 1], the inputs for the activations.
        curve: eps and robust accuracy in the order of eps, or a PNG file of the security curve.
        curve_note: Remark on the curve, such as its alarms.
        facts: Names and short values: checkpoint, dataset, library versions, ...
        hashes: Names and SHA-256: evidence, configuration, ...
        verify: Command that verifies the evidence; None without evidence.
    """

    title: str = ""
    class_names: Sequence[str] = ()
    examples: Sequence[Example] = ()
    flips: NDArray[np.int64] | None = None
    model: nn.Module | None = None
    images: Tensor | None = None
    curve: Sequence[tuple[float, Accuracy]] | bytes = ()
    curve_note: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    verify: str | None = None


def write(result: EvaluationResult, path: Path, supplement: Supplement | None = None) -> None:
    """Write a report atomically; its folder is made if it is missing.

    Args:
        result: Outcomes, threat model and cost.
        path: HTML file to write.
        supplement: Optional parts.

    Raises:
        ValueError: The file cannot be written.
    """
    more = supplement or Supplement()
    if result.weights is not None:
        more = replace(more, facts={**more.facts, "checkpoint": str(result.weights)})
    text = _CONTROL.sub("\ufffd", _render(result, more))
    with explained(path, "a report"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode("utf-8"))


def _render(result: EvaluationResult, more: Supplement) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    names = {-1: "no class", **dict(enumerate(more.class_names))}  # -1: logits that are not finite
    pages.filters |= {
        "percent": lambda value: f"{100 * value:.1f} %",
        "interval": lambda accuracy: f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]",
        "duration": _duration,
        "class_name": lambda label: names.get(label, f"class {label}"),
    }
    points = () if isinstance(more.curve, bytes) else more.curve
    norm, eps = NORMS.get(str(result.attack.get("norm")), "?"), float(result.attack.get("eps_value", "nan"))
    return pages.get_template("report.html").render(
        result=result,
        more=more,
        norm=norm,
        counts=_counts(result.outcomes),
        settings=_settings(result, norm, eps),
        classes=_classes(result),
        examples=[(example, tiles(example)) for example in more.examples],
        points=points,
        curve=curve_figure(points, eps, norm) if points else more.curve,
        address=data_address,
        flips=_largest(more.flips),
        hashes={**result.fingerprints, **more.hashes},
        activations=None if more.model is None or more.images is None else activation_figure(more.model, more.images),
        version=__version__,
    )


def _counts(verdicts: NDArray[np.uint8]) -> dict[str, int]:
    kinds = {"robust": Outcome.ROBUST, "fooled": Outcome.FOOLED, "misclassified": Outcome.MISCLASSIFIED}
    return {name: int((verdicts == kind).sum()) for name, kind in kinds.items()}


def _settings(result: EvaluationResult, norm: str, eps: float) -> dict[str, str]:
    """Threat model and settings that the result depends on, by name."""
    attack = dict(result.attack)
    exact, bounds = attack.pop("eps", "?"), attack.pop("bounds", None)
    for name in ("eps_value", "norm"):
        attack.pop(name, None)
    known = {
        "norm": norm,
        "eps": f"{exact} ≈ {eps:.6g}",
        "pixels": "without bounds" if bounds is None else f"{bounds[0]:g} to {bounds[1]:g}",
        "samples evaluated": f"{result.evaluated} of {result.total or len(result.outcomes)}",
        "precision of the search": result.precision,
        "seed": "–" if result.seed is None else str(result.seed),
    }
    return known | {name.replace("_", " "): _plain(value) for name, value in attack.items()}


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "–" if value is None else str(value)


def _classes(result: EvaluationResult) -> list[tuple[int, dict[str, int], Accuracy]]:
    """Label, counts and robust accuracy of every class with evaluated samples."""
    if not len(result.labels):
        return []
    found = [(int(label), _counts(result.outcomes[result.labels == label])) for label in np.unique(result.labels)]
    return [
        (label, counts, exact_accuracy(counts["robust"], total))
        for label, counts in found
        if (total := sum(counts.values()))
    ]


def _largest(flips: NDArray[np.int64] | None) -> dict[str, Any] | None:
    """Labels and counts (k, k) of the classes that are flipped most, in the order of the labels."""
    if flips is None or not flips.any():
        return None
    shown = np.sort(np.argsort(-(flips.sum(0) + flips.sum(1)), kind="stable")[:MOST_CLASSES])
    return {"total": int(flips.sum()), "labels": shown.tolist(), "counts": flips[np.ix_(shown, shown)].tolist()}


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
