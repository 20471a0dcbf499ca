"""Certified accuracy by bounds of margins, next to the evidence of attacks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_paf.analysis.base import Report, json_file, table
from lightning_paf.attacks.base import radius_text
from lightning_paf.evaluation.certificates import MethodName, certify
from lightning_paf.evaluation.certificates.attacked import check_evidence, evidence_of
from lightning_paf.evaluation.evidence.read import Evidence
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.types import Norm, Radius
from lightning_paf.utils.radius import radius_from_text


@dataclass(frozen=True)
class Threat:
    """A set of perturbations and a method that certifies against it.

    Attributes:
        eps: Radius.
        norm: `linf` or `l2`.
        method: Method of `certify`.
    """

    eps: Radius
    norm: Norm
    method: MethodName

    @property
    def stem(self) -> str:
        """Beginning of a file name, such as `certified_crown_linf_8-255`."""
        return f"certified_{self.method}_{self.norm}_{radius_text(self.eps).replace('/', '-')}"


def certified_report(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, folder: Path, out: Path, progress: Callable[[int], object]
) -> Report:
    """Certify images, and compare the certificates with the evidence in a run folder.

    Args:
        model: Images to logits.
        x: Images (N, C, H, W) with the indices 0 to N - 1 in the test set.
        y: Labels (N,).
        threat: Perturbations and method.
        folder: Folder of evidence of `lightning-paf test`.
        out: JSON file to write.
        progress: Called with the number of finished images.

    Raises:
        ValueError: A layer has no bounds, a number is out of range, or a certificate contradicts an attack.
    """
    evidence = evidence_of(folder, model, x, y, threat.norm)
    started = time.perf_counter()
    found = certify(model, x, y, float(threat.eps), threat.norm, threat.method, progress=progress)
    seconds = time.perf_counter() - started
    certified = found.certified.cpu().numpy()
    check_evidence(evidence, certified, threat.eps, threat.method)
    clean = exact_accuracy(int(found.correct.sum()), len(y))
    lower, attacked = exact_accuracy(int(certified.sum()), len(y)), _attacked(evidence, threat, len(y))
    rows = [("", "accuracy, 95 % interval"), (f"certified by {threat.method}", str(lower))]
    rows += [(f"robust to {name}", str(upper)) for name, upper in attacked.items()]
    lines = [
        f"{threat.norm}, eps {radius_text(threat.eps)}, {len(y)} test images, {seconds / len(y):.2f} s an image",
        *table(*rows, ("clean", str(clean))),
        "The true robust accuracy on these images is between certified and robust.",
    ]
    content: dict[str, Any] = {
        "method": threat.method,
        "norm": threat.norm,
        "eps": radius_text(threat.eps),
        "seconds": round(seconds, 3),
        **{name: _content(accuracy) for name, accuracy in (("clean", clean), ("certified", lower))},
        "attacked": {name: _content(accuracy) for name, accuracy in attacked.items()},
        "labels": y.tolist(),
        "margins": [margin if np.isfinite(margin) else None for margin in found.margins.tolist()],
    }
    return Report(lines, {out: json_file(content)})


def _attacked(evidence: Sequence[Evidence], threat: Threat, count: int) -> dict[str, Accuracy]:
    """Robust accuracy on the same images, by attack with the same radius."""
    found = {}
    for part in evidence:
        shared, attack = part.ids < count, part.metadata["attack"]
        if "target" not in attack and radius_from_text(attack["eps"]) == threat.eps and int(shared.sum()) == count:
            wrong = part.adversarial[shared] != part.labels[shared]
            found[str(attack["attack"])] = exact_accuracy(count - int(wrong.sum()), count)
    return found


def _content(accuracy: Accuracy) -> dict[str, float]:
    return {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}
