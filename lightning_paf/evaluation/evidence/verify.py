"""Check a receipt against a model and its data: every claim that one forward pass can decide."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy, nn

from lightning_paf.evaluation.evidence.content import Receipt, text_fingerprint
from lightning_paf.evaluation.evidence.encodings import NONE, in_box
from lightning_paf.evaluation.evidence.write import exact_logits, library_versions
from lightning_paf.evaluation.identity import network_fingerprint
from lightning_paf.evaluation.result import Outcome
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.functional.predictions import predicted
from lightning_paf.utils.hashing import code_fingerprint, sample_fingerprints, weights_fingerprint

AT_ONCE = 128
"""Images a forward pass."""

CHECKS: Mapping[str, str] = {
    "weights": "the model has the weights of the receipt",
    "configuration": "the configuration has the hash of the receipt",
    "inputs": "the clean image and its label have the hash of the receipt",
    "proof": "a broken sample has an adversarial image",
    "box": "the adversarial image lies in [0, 1]",
    "ball": "the adversarial image lies within eps of the clean one",
    "misclassified": "the model is wrong about the adversarial image",
    "clean error": "the model is wrong about the clean image",
    "robust": "the model is right about the clean image of a sample that counts as robust",
}
"""What is checked, and what must hold."""


@dataclass(frozen=True)
class Finding:
    """Something that does not hold.

    Attributes:
        check: One of `CHECKS`.
        sample: Number of the sample in the dataset; None where it is about the whole.
        what: What was found.
    """

    check: str
    sample: int | None
    what: str

    def __str__(self) -> str:
        """As in `sample 17, ball: at 0.0400, but eps is 0.0314`."""
        return f"{self.check if self.sample is None else f'sample {self.sample}, {self.check}'}: {self.what}"


@dataclass(frozen=True)
class Verification:
    """What came of checking a receipt.

    Attributes:
        looked_at: For each of `CHECKS` how many things were looked at: samples, or 1 for the whole, or 0.
        findings: What does not hold.
        notes: What an auditor should know, and what decides nothing.
        proven: Samples that are proven to be misclassified inside the threat model.
        judged: Samples of the receipt.
        threat: The threat model, as in `linf, eps=8/255`.
    """

    looked_at: Mapping[str, int]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    proven: int
    judged: int
    threat: str

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.findings

    @property
    def upper_bound(self) -> Accuracy:
        """Largest robust accuracy that the given model can have on these samples; with its exact 95 % interval."""
        return exact_accuracy(self.judged - self.proven, self.judged)

    def __str__(self) -> str:
        """What is proven, and what no receipt can prove."""
        rest = self.judged - self.proven
        proven = (
            f"Proven: the robust accuracy of this model is at most {self.upper_bound} ({self.threat}), because it is "
            f"wrong about {self.proven} of {self.judged} samples."
        )
        unproven = (
            f" Not proven, and by no receipt: that it is robust at the other {rest}. That takes trust in the attacks, "
            "or running them again."
        )
        return proven + unproven if rest else proven


def verify(
    receipt: Receipt,
    model: nn.Module,
    samples: Samples,
    config_text: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Check a receipt with one forward pass for each sample.

    That of a broken sample is of its adversarial image, that of a clean error or of a robust sample is of the clean
    image. Labels are those of the data, and the model is evaluated in float32.

    Args:
        receipt: Of `read_receipt`.
        model: What the receipt is about; on the device of the samples.
        samples: The data that the receipt is about, or more.
        config_text: The configuration of the model, if it is to be checked.
        progress: Called with the number of samples that have just been checked.

    Raises:
        ValueError: The data are others: ids that do not exist, images of another shape.
    """
    unknown = receipt.ids[~np.isin(receipt.ids, samples.ids)]
    if len(unknown):
        raise ValueError(
            f"The receipt is about samples that the data do not have: {len(unknown)}, the first is {unknown[0]}. "
            "Give the --data options of the evaluation."
        )
    looked_at = dict.fromkeys(CHECKS, 0)
    findings: list[Finding] = []
    for check, holds, what in _about_the_whole(receipt, model, config_text):
        looked_at[check] = 1
        findings += [] if holds else [Finding(check, None, what)]
    proven = 0
    for first in range(0, len(receipt), AT_ONCE):
        places = np.arange(first, min(first + AT_ONCE, len(receipt)))
        outcomes = _about_samples(receipt, model, places, *samples.fetch(receipt.ids[places]))
        for check, outcome in outcomes.items():
            looked_at[check] += int(np.count_nonzero(outcome.concerned))
            findings += [
                Finding(check, int(receipt.ids[places[at]]), outcome.what[at]) for at in np.flatnonzero(outcome.failed)
            ]
        proven += int(np.count_nonzero(_proven(outcomes)))
        if progress is not None:
            progress(len(places))
    threat = f"{receipt.manifest['norm']}, eps={receipt.manifest['eps']}"
    notes = tuple(_notes(receipt, model, samples, config_text))
    return Verification(looked_at, tuple(findings), notes, proven, len(receipt), threat)


class _Outcome(NamedTuple):
    """One check of some samples: which it concerns (N,), for which it holds (N,), and what was found (N)."""

    concerned: NDArray[np.bool_]
    holds: NDArray[np.bool_]
    what: list[str]

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Where it does not hold, (N,)."""
        return self.concerned & ~self.holds


def _about_the_whole(receipt: Receipt, model: nn.Module, config_text: str | None) -> Iterator[tuple[str, bool, str]]:
    """Check, whether it holds, and what was found."""
    weights, config = weights_fingerprint(model), receipt.manifest["config"]
    yield "weights", weights == receipt.manifest["weights"], f"here {weights}, receipt {receipt.manifest['weights']}"
    if config is not None and config_text is not None:
        here = text_fingerprint(config_text)
        yield "configuration", here == config["sha256"], f"here {here}, receipt {config['sha256']}"


def _about_samples(
    receipt: Receipt, model: nn.Module, places: NDArray[np.int64], x: Tensor, y: Tensor
) -> dict[str, _Outcome]:
    """All checks of some samples, with one forward pass."""
    if tuple(x.shape[1:]) != receipt.image:
        raise ValueError(
            f"The receipt is about images of shape {receipt.image}, but the data have {tuple(x.shape[1:])}. "
            "Give the --data options of the evaluation."
        )
    clean, labels = x.float().cpu().numpy(), y.cpu().numpy()
    images = receipt.judged_images(places, clean)
    classes = predicted(exact_logits(model, from_numpy(images).to(x.device))).cpu().numpy()
    sizes, flat = receipt.ball.size(clean, images), images.reshape(len(images), -1)
    same = (sample_fingerprints(x, y) == receipt.inputs[places]).all(axis=1) & (labels == receipt.labels[places])
    verdicts, shown, wrong = receipt.verdicts[places], receipt.encoding[places] != NONE, classes != labels
    said = [f"class {predicted}, label {label}" for predicted, label in zip(classes, labels, strict=True)]
    box = [f"pixels from {low:.9g} to {high:.9g}" for low, high in zip(flat.min(1), flat.max(1), strict=True)]
    ball = [f"distance {size:.9g}, eps is {receipt.manifest['eps']}" for size in sizes]
    n = len(places)
    return {
        "inputs": _Outcome(np.ones(n, bool), same, ["another image or label"] * n),
        "proof": _Outcome(verdicts == Outcome.FOOLED, shown, ["counts as broken, but there is no such image"] * n),
        "box": _Outcome(shown, in_box(images), box),
        "ball": _Outcome(shown, sizes <= receipt.ball.limit, ball),
        "misclassified": _Outcome(shown, wrong, said),
        "clean error": _Outcome(verdicts == Outcome.MISCLASSIFIED, wrong, said),
        "robust": _Outcome(verdicts == Outcome.ROBUST, ~wrong, said),
    }


def _proven(outcomes: Mapping[str, _Outcome]) -> NDArray[np.bool_]:
    """Samples that count as wrong, and in which no fault was found, (N,)."""
    faultless = np.all([~outcome.failed for outcome in outcomes.values()], axis=0)
    return np.asarray(faultless & ~outcomes["robust"].concerned)


def _notes(receipt: Receipt, model: nn.Module, samples: Samples, config_text: str | None) -> Iterator[str]:
    manifest, n = receipt.manifest, len(receipt)
    if n < manifest["counts"]["total"]:
        yield f"A stop rule ended the evaluation after {n} of {manifest['counts']['total']} samples."
    if not np.array_equal(receipt.ids, samples.ids[:n]):
        yield f"The {n} samples are not the first of the data: whoever chose them may have chosen easy ones."
    if manifest["config"] is None:
        yield "The receipt has no configuration to compare with."
    elif config_text is None:
        yield "The configuration was not compared: none was given."
    if network_fingerprint(model) != manifest["network"]:
        yield (
            "The network is another apart from its weights: its modules, as this version of torch prints them, or its "
            "normalisation of the images. If predictions differ, look there."
        )
    here, there = library_versions(), manifest["versions"]
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            yield f"{name} is {here.get(name, 'absent')} here, and was {there.get(name, 'absent')} there."
    if code_fingerprint() != manifest["code"]:
        yield "The code of the attacks and verdicts has changed since; the checks do not depend on it."
