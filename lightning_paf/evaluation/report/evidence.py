"""The parts of a report that come from an evidence file."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_paf.evaluation.evidence import Evidence
from lightning_paf.evaluation.report.figures import Example
from lightning_paf.evaluation.report.report import Supplement
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples
from lightning_paf.utils.hashing import sample_fingerprints

SHOWN = 12
"""Examples in a report."""

INPUTS = 64
"""Clean images that are the inputs of the activations."""


def supplement_of(
    title: str,
    dataset: str,
    checkpoint: Path | None,
    evidence: tuple[Path, Evidence] | None,
    model: nn.Module | None = None,
    samples: Samples | None = None,
) -> Supplement:
    """Collect the parts of a report.

    Args:
        title: Name of the run.
        dataset: Name of the data; empty if it is unknown.
        checkpoint: The evaluated weights; None for weights in memory.
        evidence: Path and content of the evidence file, if there is one.
        model: Images to logits; None leaves the activations out.
        samples: Source of the clean images; None leaves examples and activations out.
    """
    facts = {"checkpoint": str(checkpoint or "–"), "dataset": dataset or "–"}
    images = None if samples is None else samples.fetch(samples.ids[:INPUTS])[0]
    plain = Supplement(title, class_names(dataset), model=model, images=images, facts=facts)
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
    """Result in an evidence file, under the name of its evaluation; without the cost of the sub-attacks."""
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
    )


def evidence_examples(content: Evidence, samples: Samples, count: int = SHOWN) -> list[Example]:
    """Up to `count` fooled samples with their adversarial images; `samples` is the source of the clean ones.

    Raises:
        ValueError: The clean images are not those of the evaluation.
    """
    fooled = np.flatnonzero(content.fooled)
    chosen = fooled[spread_over_classes(content.labels[fooled], count)]
    if not len(chosen):
        return []
    x, y = (part.cpu() for part in samples.fetch(content.ids[chosen]))
    if not np.array_equal(sample_fingerprints(x, y), content.inputs[chosen]):
        raise ValueError("The clean images are not those of the evidence. Pass the --data.root of the evaluation.")
    images = torch.from_numpy(content.evaluated_images(chosen, x.float().numpy()))
    ids, labels, predicted, fooled_by = (
        column[chosen].tolist() for column in (content.ids, content.labels, content.adversarial, content.fooled_by)
    )
    names = [str(content.metadata["sub_attacks"][index]) for index in fooled_by]
    return [Example(*row) for row in zip(ids, x.float(), images, labels, predicted, names, strict=True)]


def evidence_flips(content: Evidence) -> NDArray[np.int64]:
    """Number of fooled samples of each class (rows) that were predicted as each other class, (classes, classes)."""
    known = content.fooled & (content.adversarial >= 0)
    classes = int(max(content.labels.max(), content.adversarial.max())) + 1
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (content.labels[known], content.adversarial[known]), 1)
    return counts


def spread_over_classes(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of up to `count` labels: the first of every class, then the second of every class, and so on."""
    by_class = np.argsort(labels, kind="stable")
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.arange(len(labels)) - np.searchsorted(labels[by_class], labels[by_class])
    return np.asarray(np.lexsort((labels, turn))[:count])


def class_names(dataset: str) -> Sequence[str]:
    """Names of the classes of CIFAR-10; empty for other datasets, whose classes appear as numbers."""
    if dataset != "cifar10":
        return ()
    return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
