"""Report of an evaluation: one self-contained HTML page."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf import __version__
from lightning_paf.evaluation.confidence import confidence_figure
from lightning_paf.evaluation.evidence import Evidence
from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.evaluation.report.figures import Example, activation_figure, curve_figure, data_address, tiles
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.runs.progress import duration
from lightning_paf.utils.files import explained, write_whole
from lightning_paf.utils.hashing import sample_fingerprints

NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}

SHOWN = 12
"""Maximum number of adversarial examples in a report."""

INPUTS = 64
"""Number of clean images that are the inputs of the activations."""

MAX_CLASSES = 20
"""Maximum number of classes in the table of predictions under attack.

The classes with the most fooled samples are shown."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, eq=False)
class Supplement:
    """Parts of a report in addition to the result; missing parts are omitted.

    Attributes:
        title: Name of the run.
        class_names: Names in the order of the labels.
        examples: Fooled samples to show.
        flips: Number of fooled samples of each class (rows) that were predicted as each other class (columns).
        model: Model whose activations are drawn; images to logits.
        images: Clean images (N, C, H, W) in [0, 1], the inputs of the activations.
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
    """Write a report atomically; its folder is created if it is missing.

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
        "duration": lambda seconds: "–" if math.isnan(seconds) else duration(seconds),
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
        calibration=confidence_figure(result.calibration) if result.calibration else None,
        address=data_address,
        flips=_largest(more.flips),
        hashes={**result.fingerprints, **more.hashes},
        activations=None if more.model is None or more.images is None else activation_figure(more.model, more.images),
        version=__version__,
    )


def _counts(outcomes: NDArray[np.uint8]) -> dict[str, int]:
    kinds = (Outcome.ROBUST, Outcome.FOOLED, Outcome.MISCLASSIFIED)
    return {kind.name.lower(): int((outcomes == kind).sum()) for kind in kinds}


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
    counts = {label: _counts(result.outcomes[result.labels == label]) for label, *_ in result.per_class()}
    return [(label, found, exact_accuracy(found["robust"], sum(found.values()))) for label, found in counts.items()]


def _largest(flips: NDArray[np.int64] | None) -> dict[str, Any] | None:
    """Select the `MAX_CLASSES` most often flipped classes, with labels and counts."""
    if flips is None or not flips.any():
        return None
    shown = np.sort(np.argsort(-(flips.sum(0) + flips.sum(1)), kind="stable")[:MAX_CLASSES])
    return {"total": int(flips.sum()), "labels": shown.tolist(), "counts": flips[np.ix_(shown, shown)].tolist()}


def supplement_of(
    title: str,
    dataset: str,
    class_names: Sequence[str],
    checkpoint: Path | None,
    evidence: tuple[Path, Evidence] | None,
    model: nn.Module | None = None,
    samples: Samples | None = None,
) -> Supplement:
    """Collect the parts of a report.

    Args:
        title: Name of the run.
        dataset: Name of the data; empty if it is unknown.
        class_names: Names of the classes in the order of the labels; empty if they have none.
        checkpoint: The evaluated weights; None for weights in memory.
        evidence: Path and content of the evidence file, if there is one.
        model: Images to logits; None omits the activations.
        samples: Source of the clean images; None omits examples and activations.
    """
    facts = {"checkpoint": str(checkpoint or "–"), "dataset": dataset or "–"}
    images = None if samples is None else samples.fetch(samples.ids[:INPUTS])[0]
    plain = Supplement(title, class_names, model=model, images=images, facts=facts)
    if evidence is None:
        return plain
    path, content = evidence
    return replace(
        plain,
        examples=() if samples is None else evidence_examples(content, samples),
        flips=evidence_flips(content),
        facts=facts | content.metadata["versions"],
        hashes={"evidence": content.sha256, "config": content.metadata["config"] or "–"},
        verify=shlex.join(["lightning-paf", "verify", str(path), "--ckpt", str(checkpoint or "CHECKPOINT")]),
    )


def result_of(content: Evidence, name: str) -> EvaluationResult:
    """Build a result from evidence, without the cost of the sub-attacks."""
    metadata = content.metadata
    return EvaluationResult(
        name,
        metadata["attack"],
        content.outcomes,
        float("nan"),
        content.ids,
        content.labels,
        adversarial=content.adversarial,
        fooled_by=content.fooled_by,
        dataset=metadata["dataset"],
        fingerprints={"model": metadata["weights"], "network": metadata["network"], "code": metadata["code"]},
        seed=metadata["seed"],
        precision=metadata["precision"],
        total=metadata["total"],
        flags=metadata["flags"],
    )


def evidence_examples(content: Evidence, samples: Samples, count: int = SHOWN) -> list[Example]:
    """Select fooled samples of different classes, with their adversarial images.

    Args:
        content: The evidence.
        samples: Source of the clean images.
        count: Maximum number of examples.

    Raises:
        ValueError: The clean images are not those of the evaluation.
    """
    fooled = np.flatnonzero(content.fooled)
    chosen = fooled[spread_over_classes(content.labels[fooled], count)]
    if not len(chosen):
        return []
    x, y = (part.cpu() for part in samples.fetch(content.ids[chosen]))
    if not np.array_equal(sample_fingerprints(x, y), content.inputs[chosen]):
        raise ValueError("Clean images must be those of the evidence. Pass the --data.root of its evaluation.")
    images = torch.from_numpy(content.evaluated_images(chosen, x.float().numpy()))
    ids, labels, predicted, fooled_by = (
        column[chosen].tolist() for column in (content.ids, content.labels, content.adversarial, content.fooled_by)
    )
    names = [str(content.metadata["sub_attacks"][index]) for index in fooled_by]
    return [Example(*row) for row in zip(ids, x.float(), images, labels, predicted, names, strict=True)]


def evidence_flips(content: Evidence) -> NDArray[np.int64]:
    """Count fooled samples by class (rows) and prediction (columns)."""
    known = content.fooled & (content.adversarial >= 0)
    classes = int(max(content.labels.max(), content.adversarial.max())) + 1
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (content.labels[known], content.adversarial[known]), 1)
    return counts


def spread_over_classes(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Select up to `count` indices, evenly over the classes.

    The first sample of every class comes first, then the second one of every class, and so on.
    """
    by_class = np.argsort(labels, kind="stable")
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.arange(len(labels)) - np.searchsorted(labels[by_class], labels[by_class])
    return np.asarray(np.lexsort((labels, turn))[:count])
