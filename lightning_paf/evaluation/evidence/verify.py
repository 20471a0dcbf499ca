"""Verification of evidence with one forward pass for each sample."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.evaluation.evidence.read import Evidence
from lightning_paf.evaluation.evidence.write import library_versions, text_hash
from lightning_paf.evaluation.identity import network_fingerprint
from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.functional.predictions import predicted
from lightning_paf.nn.modes import frozen, full_precision
from lightning_paf.utils.hashing import code_fingerprint, sample_fingerprints, weights_fingerprint

CHECKS: Mapping[str, str] = {
    "weights": "the model has the weights of the evidence",
    "configuration": "the configuration has the hash of the evidence",
    "inputs": "the clean image and its label have the hash of the evidence",
    "box": "the adversarial image lies in [0, 1]",
    "ball": "the adversarial image lies within eps of the clean image",
    "fooled": "the model misclassifies the adversarial image of a fooled sample",
    "misclassified": "the model misclassifies the clean image of a misclassified sample",
    "robust": "the model classifies the clean image of a robust sample correctly",
}
"""Rules by name."""

Mask: TypeAlias = NDArray[np.bool_]
Column: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Mismatch:
    """A rule that does not hold.

    Attributes:
        check: One of `CHECKS`.
        sample: Index in the dataset; None for a mismatch that concerns the file.
        detail: The values that differ.
    """

    check: str
    sample: int | None
    detail: str

    def __str__(self) -> str:
        """Format as `sample 17, ball: distance 0.0400, eps is 8/255`."""
        return f"{self.check if self.sample is None else f'sample {self.sample}, {self.check}'}: {self.detail}"


@dataclass(frozen=True)
class Verification:
    """Result of a verification.

    Attributes:
        evidence: The verified evidence.
        checked: Number of samples that each of `CHECKS` applies to; 0 or 1 for checks of the file.
        mismatches: Rules that do not hold.
        notes: Remarks that do not affect the result.
        proven: Number of samples that are proven to be misclassified within the threat model.
    """

    evidence: Evidence
    checked: Mapping[str, int]
    mismatches: tuple[Mismatch, ...]
    notes: tuple[str, ...]
    proven: int

    @property
    def ok(self) -> bool:
        """Whether every rule holds."""
        return not self.mismatches

    @property
    def upper_bound(self) -> Accuracy:
        """Upper bound on robust accuracy on these samples, with its exact 95 % interval."""
        return exact_accuracy(len(self.evidence) - self.proven, len(self.evidence))

    def __str__(self) -> str:
        """The proven bound, and the part that no evidence can prove."""
        rest = len(self.evidence) - self.proven
        proven = (
            f"Proven: the robust accuracy of this model is at most {self.upper_bound} ({self.evidence.threat}), "
            f"because it misclassifies {self.proven} of {len(self.evidence)} samples."
        )
        unproven = (
            f" Not proven, and not provable by evidence: robustness on the other {rest}. To check it, run "
            "`lightning-paf test` again."
        )
        return proven + unproven if rest else proven


def verify(
    evidence: Evidence,
    model: nn.Module,
    samples: Samples,
    config: str | None = None,
    progress: Callable[[int], None] = lambda count: None,
    batch: int = 128,
) -> Verification:
    """Check evidence with one forward pass for each sample, in float32.

    The pass of a fooled sample is on its adversarial image, that of any other sample on its clean image. One batch of
    images is in memory at a time.

    Args:
        evidence: Output of `read`.
        model: Images (N, C, H, W) in [0, 1] to logits (N, K); on the device of the samples.
        samples: Data of the evaluation, or more.
        config: Text of the configuration; None skips its check.
        progress: Called with the number of samples of each checked batch.
        batch: Images in one forward pass.

    Raises:
        ValueError: The data lack some of the samples, or have images of another shape.
    """
    unknown = evidence.ids[~np.isin(evidence.ids, samples.ids)]
    if len(unknown):
        raise ValueError(
            f"The data must have all samples of the evidence, got {len(unknown)} missing ones, first {unknown[0]}. "
            "Pass the --data options of the evaluation."
        )
    hashes = {"weights": (weights_fingerprint(model), evidence.metadata["weights"])}
    if config is not None and evidence.metadata["config"]:
        hashes["configuration"] = text_hash(config), evidence.metadata["config"]
    found = [Mismatch(check, None, f"here {a}, evidence {b}") for check, (a, b) in hashes.items() if a != b]
    checked = {check: int(check in hashes) for check in CHECKS}
    passed = np.ones(len(evidence), bool)
    computed = _recompute(evidence, model, samples, progress, batch)
    for check, applies, holds, detail in _checks(evidence, *computed):
        checked[check] = int(np.count_nonzero(applies))
        failed = applies & ~holds
        passed &= ~failed
        found += [Mismatch(check, int(evidence.ids[i]), detail(i)) for i in np.flatnonzero(failed).tolist()]
    other_class = int(np.count_nonzero(passed & (computed[-1] != evidence.adversarial)))
    notes = tuple(_notes(evidence, model, samples, config, other_class))
    proven = int(np.count_nonzero(passed & (evidence.outcomes != Outcome.ROBUST)))
    return Verification(evidence, checked, tuple(found), notes, proven)


def _recompute(
    evidence: Evidence, model: nn.Module, samples: Samples, progress: Callable[[int], None], batch: int
) -> list[Column]:
    """Compute the columns of `_checks`, one entry for each sample."""
    parts = []
    for first in range(0, len(evidence), batch):
        indices = np.arange(first, min(first + batch, len(evidence)))
        x, y = samples.fetch(evidence.ids[indices])
        clean = x.float().cpu().numpy()
        images = evidence.evaluated_images(indices, clean)
        same = (sample_fingerprints(x, y) == evidence.inputs[indices]).all(1)
        same &= y.cpu().numpy() == evidence.labels[indices]
        flat = images.reshape(len(images), -1)
        classes = predicted(_logits(model, torch.from_numpy(images).to(x.device))).cpu().numpy()
        parts.append((same, flat.min(1), flat.max(1), evidence.distances(clean, images), classes))
        progress(len(indices))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) in eval mode, float32 throughout."""
    with frozen(model), torch.autocast(x.device.type, enabled=False), full_precision():
        logits: Tensor = model(x)
    return logits.float()


def _checks(
    evidence: Evidence, same: Mask, low: Column, high: Column, distance: Column, classes: Column
) -> Iterator[tuple[str, Mask, Mask, Callable[[int], str]]]:
    """Yield the name of each check, two masks (n,), and a function for details.

    The masks are the samples that the check applies to, and those that pass it.

    Args:
        evidence: Output of `read`.
        same: Whether the input of each sample matches the evidence.
        low: Smallest pixel of each evaluated image.
        high: Largest pixel of each evaluated image.
        distance: Distance of each evaluated image from the clean one.
        classes: Prediction for each evaluated image.
    """
    wrong, fooled, outcomes = classes != evidence.labels, evidence.fooled, evidence.outcomes
    eps = evidence.metadata["attack"]["eps"]

    def prediction(i: int) -> str:
        return f"class {classes[i]}, label {evidence.labels[i]}"

    yield "inputs", np.ones_like(same), same, lambda _: "another image or label"
    yield "box", fooled, (low >= 0) & (high <= 1), lambda i: f"pixels from {low[i]:.9g} to {high[i]:.9g}"
    yield "ball", fooled, distance <= evidence.limit, lambda i: f"distance {distance[i]:.9g}, eps is {eps}"
    yield "fooled", fooled, wrong, prediction
    yield "misclassified", outcomes == Outcome.MISCLASSIFIED, wrong, prediction
    yield "robust", outcomes == Outcome.ROBUST, ~wrong, prediction


def _notes(
    evidence: Evidence, model: nn.Module, samples: Samples, config: str | None, other_class: int
) -> Iterator[str]:
    metadata, n = evidence.metadata, len(evidence)
    yield from metadata["flags"].values()
    if n < metadata["total"]:
        yield f"A stop rule ended the evaluation after {n} of {metadata['total']} samples."
    if not np.array_equal(evidence.ids, samples.ids[:n]):
        yield f"The {n} samples are not the first of the data. The author may have selected easy ones."
    if other_class:
        yield f"The model predicts another wrong class than recorded for {other_class} samples."
    if not metadata["config"]:
        yield "The evidence has no configuration to compare with."
    elif config is None:
        yield "The configuration was not compared, because none was given."
    if network_fingerprint(model) != metadata["network"]:
        yield (
            "The network differs apart from its weights: its printed modules, which depend on the version of torch, or "
            "its normalisation of the images. This can change predictions."
        )
    here, there = library_versions(), metadata["versions"]
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            yield f"{name}: here {here.get(name, 'absent')}, evidence {there.get(name, 'absent')}."
    if code_fingerprint() != metadata["code"]:
        yield "The evaluation code has changed since. The checks do not depend on it."
