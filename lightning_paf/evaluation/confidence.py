"""Calibration and abstention of an evaluated model, clean and under attack."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_paf.attacks.sub_attack import seeded
from lightning_paf.functional.calibration import calibration, reliability, risk_coverage
from lightning_paf.functional.predictions import undefined
from lightning_paf.nn.modes import frozen, full_precision
from lightning_paf.utils.figures import BLUE, REFERENCE, VERMILION, figure_png, open_figure

if TYPE_CHECKING:
    from lightning_paf.evaluation.result import EvaluationResult

_AT_ONCE = 256
_POINTS = 20  # coverages of a saved curve


def described(probabilities: Tensor, y: Tensor) -> dict[str, Any]:
    """Calibration and risk-coverage curve as plain values.

    Args:
        probabilities: Of the classes, (N, K), N at least 1.
        y: Labels (N,).

    Returns:
        The values of `calibration`; `aurc`; `reliability`; `risks` at the coverages 1/20, 2/20, ... 1.
    """
    risks = risk_coverage(probabilities, y)
    counts = torch.arange(1, _POINTS + 1) * len(y) / _POINTS
    return {
        **calibration(probabilities, y),
        "aurc": float(risks.mean()),
        "reliability": reliability(probabilities, y),
        "risks": risks.cpu()[counts.ceil().long() - 1].tolist(),
    }


@torch.no_grad()
def confidence_of(result: "EvaluationResult") -> dict[str, dict[str, Any]]:
    """Calibration of the model of a result on its samples, `clean` and `attacked`.

    Under attack, adversarial images replace those of the fooled samples; the others keep their clean images.

    Returns:
        See `described`; nothing for a result from a file, or where logits are not finite.
    """
    evaluation = result.evaluation
    if evaluation is None or not len(result.ids):
        return {}
    model, samples = evaluation.probe.model, evaluation.samples
    device = next(iter(samples.fetch(result.ids[:1]))).device
    rows, parts, labels = {sample: row for row, sample in enumerate(result.ids.tolist())}, [], []
    with frozen(model), full_precision(), torch.autocast(device.type, enabled=False), seeded(evaluation.seed, device):
        for first in range(0, len(result.ids), _AT_ONCE):
            x, y = samples.fetch(result.ids[first : first + _AT_ONCE])
            parts.append(model(x).float())
            labels.append(y)
        logits, y = torch.cat(parts), torch.cat(labels)
        attacked = logits.clone()
        for ids, images in result.examples():
            own = torch.tensor([rows[sample] for sample in ids.tolist()], device=device)
            for part, some in zip(torch.split(images, _AT_ONCE), torch.split(own, _AT_ONCE), strict=True):
                attacked[some] = model(part.to(device)).float()
    if bool(undefined(logits).any() or undefined(attacked).any()):
        return {}
    return {"clean": described(logits.softmax(1), y), "attacked": described(attacked.softmax(1), y)}


def confidence_figure(confidence: Mapping[str, Mapping[str, Any]]) -> bytes:
    """PNG file of the reliability diagram and the risk-coverage curve."""
    names = {"clean": ("clean", BLUE, "o"), "attacked": ("under attack", VERMILION, "s")}
    with open_figure(9.6, 4) as figure:
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], **REFERENCE)
        for name, values in confidence.items():
            label, colour, marker = names[name]
            confidences, accuracies, _ = zip(*values["reliability"], strict=True)
            left.plot(confidences, accuracies, marker=marker, color=colour, label=label)
            coverages = [(number + 1) / len(values["risks"]) for number in range(len(values["risks"]))]
            right.plot(coverages, values["risks"], color=colour, label=label)
        left.set(xlabel="confidence, mean of a bin", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        right.set(xlabel="coverage", ylabel="error of the accepted", xlim=(0, 1), ylim=(0, 1.02))
        for axes in (left, right):
            axes.grid()
            axes.legend()
    return figure_png(figure)
