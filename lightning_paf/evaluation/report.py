"""One evaluation as one HTML file that shows what the verdict rests on, and loads nothing when it is opened."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf import __version__
from lightning_paf.evaluation.report_page import Node, code, element, facts, page, section, table
from lightning_paf.evaluation.report_pictures import (
    GAIN,
    Example,
    activations,
    class_name,
    confusion,
    curve,
    embedded,
    legend,
    shares,
    triptych,
)
from lightning_paf.evaluation.result import EvaluationResult, Verdict
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.utils.files import explained, write_whole

NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}


@dataclass(frozen=True)
class Origin:
    """Where a verdict comes from, and how to check it.

    Attributes:
        facts: Names and short values: checkpoint, dataset, date, ...
        hashes: Names and fingerprints: weights, data, code, receipt, ...
        versions: Libraries and their versions.
        verify: The command that checks the receipt; None where there is no receipt.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    verify: str | None = None


def write_report(
    path: Path,
    *,
    result: EvaluationResult,
    title: str = "",
    class_names: Sequence[str] = (),
    examples: Sequence[Example] = (),
    examples_note: str = "",
    model: nn.Module | None = None,
    images: Tensor | None = None,
    flips: NDArray[np.int64] | None = None,
    security_curve: Sequence[tuple[float, Accuracy]] | bytes = (),
    curve_note: str = "",
    origin: Origin | None = None,
) -> None:
    """Write a report, whole or not at all. Everything but the result may be missing, and its section then is.

    Args:
        path: HTML file to write.
        result: The verdicts.
        title: What was evaluated, such as the name of the run.
        class_names: Of the classes, in the order of their labels; numbers stand in for missing ones.
        examples: Broken samples to show.
        examples_note: What a reader must know of them.
        model: Images to logits; its activations are drawn.
        images: Clean images (N, C, H, W) that give the activations their inputs; without them nothing is drawn.
        flips: How often each class (rows) became which other (columns) on the broken samples.
        security_curve: eps and robust accuracy, in the order of eps; or a picture of them as a PNG file.
        curve_note: What a reader must know of the curve, such as its alarms.
        origin: Hashes, versions, and the command that verifies.

    Raises:
        ValueError: The file cannot be written.
    """
    name = f"{title} · {result.name}" if title else result.name
    parts = [
        _verdict(name, result),
        _attacks(result),
        _classes(result, class_names),
        _curve(result, security_curve, curve_note),
        _examples(examples, examples_note, class_names),
        _flips(flips, class_names),
        _activations(model, images),
        _origin(result, origin or Origin()),
    ]
    footer = element("footer", f"Written by lightning-paf {__version__}. This file loads nothing from elsewhere.")
    text = page(name, *(node for part in parts for node in part), footer)
    with explained(path, "a report"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode("utf-8"))


def percent(value: float) -> str:
    """As in `61.5 %`."""
    return f"{100 * value:.1f} %"


def _interval(accuracy: Accuracy) -> str:
    return f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def _verdict(name: str, result: EvaluationResult) -> list[Element]:
    norm, eps = NORMS.get(str(result.attack.get("norm")), "?"), str(result.attack.get("eps", "?"))
    lead = (
        f"{result.robust.correct} of {result.robust.total} images keep their right class under "
        f"{result.attack.get('attack', 'the attack')} with perturbations of {norm} size at most {eps}."
    )
    numbers = [
        ("Robust accuracy", result.robust, "big robust"),
        ("Clean accuracy", result.clean, "big"),
    ]
    blocks = [
        element(
            "div",
            element("span", label, class_="name"),
            element("span", percent(accuracy.value), class_=style),
            element(
                "span", f"95 % interval {_interval(accuracy)}, {accuracy.correct} of {accuracy.total}", class_="note"
            ),
        )
        for label, accuracy, style in numbers
    ]
    parts = [
        ("robust", "robust", result.robust.correct),
        ("broken", "broken", result.clean.correct - result.robust.correct),
        ("wrong without an attack", "error", result.clean.total - result.clean.correct),
    ]
    return [
        element("h1", name),
        element("p", lead, class_="lead"),
        section(
            "Verdict",
            element("div", *blocks, class_="numbers"),
            shares(parts),
            legend(parts),
            *_stopped_early(result),
            facts(_threat_model(result)),
        ),
    ]


def _stopped_early(result: EvaluationResult) -> list[Element]:
    if result.anytime is None:
        return []
    words = (
        f"A stop rule ended the evaluation after {result.judged} of {result.total} samples, in random order. The "
        f"robust accuracy on all of them lies in {result.anytime}, an interval that holds whenever one stops."
    )
    return [element("p", words)]


def _threat_model(result: EvaluationResult) -> dict[str, Node]:
    """The settings that the verdict depends on, exact."""
    attack, bounds = result.attack, result.attack.get("bounds")
    found = {
        "norm": NORMS.get(str(attack.get("norm")), str(attack.get("norm"))),
        "eps": f"{attack.get('eps')} ≈ {float(attack.get('eps_value', 'nan')):.6g}",
        "pixels": "without bounds" if bounds is None else f"{bounds[0]:g} to {bounds[1]:g}",
        "samples judged": f"{result.judged} of {result.total or len(result.verdicts)} asked for",
        "precision of the search": result.precision,
        "seed": None if result.seed is None else str(result.seed),
        "time in the attack": None if math.isnan(result.seconds) else _duration(result.seconds),
    }
    hidden = {"eps_value", "bounds", *(name for name, value in found.items() if value is not None)}
    settings = {key.replace("_", " "): _plain(value) for key, value in attack.items() if key not in hidden}
    named = {name: value for name, value in found.items() if value is not None} | settings
    return {name[0].upper() + name[1:] if name != "eps" else name: value for name, value in named.items()}


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "–" if value is None else str(value)


def _attacks(result: EvaluationResult) -> list[Element]:
    if not result.stages:
        return []
    rows = [
        [
            stage.label,
            f"{stage.attacked:,}",
            f"{stage.broken:,}",
            f"{stage.forward + stage.exact:,}",
            f"{stage.backward:,}",
            _duration(stage.seconds),
        ]
        for stage in result.stages
    ]
    head = ["attack", "attacked", "broken", "forward passes", "backward passes", "time"]
    note = "Each attack sees only what those before left correctly classified. Passes count images."
    return [section("Attacks", table("Attacks", head, rows), element("p", note, class_="note"))]


def _classes(result: EvaluationResult, names: Sequence[str]) -> list[Element]:
    """A row for each class with a bar of its verdicts."""
    if result.labels is None:
        return []
    rows: list[list[Node]] = []
    for label in np.unique(result.labels):
        verdicts = result.verdicts[(result.labels == label) & (result.verdicts != Verdict.NOT_JUDGED)]
        robust, broken, error = (
            int((verdicts == kind).sum()) for kind in (Verdict.ROBUST, Verdict.BROKEN, Verdict.CLEAN_ERROR)
        )
        if not len(verdicts):
            continue
        accuracy = exact_accuracy(robust, len(verdicts))
        bar = shares([("robust", "robust", robust), ("broken", "broken", broken), ("wrong", "error", error)], width=220)
        rows.append(
            [
                class_name(int(label), names),
                bar,
                str(len(verdicts)),
                percent((robust + broken) / len(verdicts)),
                percent(accuracy.value),
                _interval(accuracy),
            ]
        )
    head = ["class", "robust, broken, wrong", "samples", "clean", "robust", "95 % interval"]
    return [section("Classes", table("Classes", head, rows, words=2))]


def _curve(result: EvaluationResult, points: Sequence[tuple[float, Accuracy]] | bytes, note: str) -> list[Element]:
    if not points:
        return []
    remark = [element("p", note)] if note else []
    if isinstance(points, bytes):
        picture = embedded(points, "robust accuracy over eps", class_="picture")
        return [section("Security curve", *remark, picture)]
    norm = NORMS.get(str(result.attack.get("norm")), "")
    drawing = curve(points, float(result.attack.get("eps_value", 0.0)), f"eps ({norm}, pixels in [0, 1])")
    key = "The dashed line marks the eps of this evaluation; the band is the 95 % interval of each point."
    rows = [[f"{eps:.4g}", percent(value.value), _interval(value)] for eps, value in points]
    numbers = table("Security curve", ["eps", "robust", "95 % interval"], rows)
    numbers.set("class", "wide narrow")
    return [section("Security curve", *remark, drawing, element("p", key, class_="note"), numbers)]


def _examples(examples: Sequence[Example], note: str, names: Sequence[str]) -> list[Element]:
    if not examples:
        return []
    words = f"Clean image, perturbation times {GAIN} around grey, adversarial image; true class → prediction. {note}"
    figures = [triptych(example, names) for example in examples]
    return [
        section(
            "Adversarial images",
            element("p", words.strip(), class_="note"),
            element("div", *figures, class_="gallery"),
        )
    ]


def _flips(flips: NDArray[np.int64] | None, names: Sequence[str]) -> list[Element]:
    if flips is None or not flips.any():
        return []
    words = f"What the {int(flips.sum())} broken samples (rows: true class) were taken for (columns)."
    return [section("Classes under attack", element("p", words, class_="note"), confusion(flips, names))]


def _activations(model: nn.Module | None, images: Tensor | None) -> list[Element]:
    drawn = activations(model, images) if model is not None and images is not None else []
    return [section("Activations", *drawn)] if drawn else []


def _origin(result: EvaluationResult, origin: Origin) -> list[Element]:
    hashes = {**result.fingerprints, **origin.hashes}
    parts: list[Node] = []
    if origin.facts or origin.versions:
        parts.append(facts({**origin.facts, **origin.versions}))
    if hashes:
        listed = facts({name: code(value) for name, value in hashes.items()})
        listed.set("class", "hashes")
        parts += [element("h3", "Fingerprints (SHA-256)"), listed]
    parts.append(element("h3", "Check it yourself"))
    if origin.verify is None:
        words = "There is no receipt of this evaluation: its number rests on the word of who ran it."
        parts.append(element("p", words, class_="note"))
    else:
        words = (
            "This command needs one forward pass. It checks that every adversarial image lies within the threat model "
            "and is misclassified, and that weights and images are those of the fingerprints."
        )
        parts += [element("pre", code(origin.verify)), element("p", words, class_="note")]
    return [section("Origin", *parts)]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
