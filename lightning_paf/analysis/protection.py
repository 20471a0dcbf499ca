"""Accuracy of a protected class and of the others (Shen et al., 2021)."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_paf.analysis.base import Load, Progress, Report, TrainedRun, json_file, percent, table
from lightning_paf.attacks import FGSM, PGD, Attack, AutoAttack, Restarts
from lightning_paf.evaluation.evaluate import Evaluation
from lightning_paf.functional.losses import margin
from lightning_paf.specs import class_name
from lightning_paf.utils.arguments import number, positive

CHECKPOINTS = "+"

AT_ONCE = 512
"""Images read at once."""


@dataclass(frozen=True)
class Protection:
    """Accuracies around one class.

    Attributes:
        label: The class.
        own: Fraction of its samples that are classified correctly.
        others: The same of all samples of other classes.
        taken: Fraction of the samples of other classes that are classified as it.
        overall: Fraction of all samples that are classified correctly.
    """

    label: int
    own: float
    others: float
    taken: float
    overall: float


def check_protected(labels: NDArray[np.int64], label: int) -> None:
    """Check that a class can be compared with others.

    Args:
        labels: True classes, (n,).
        label: The protected class.

    Raises:
        ValueError: No sample of this class, or of no other.
    """
    own = np.count_nonzero(labels == label)
    if own in (0, len(labels)):
        raise ValueError(
            f"The {len(labels)} samples must include class {label} and other classes, got {own} of class {label}. Pass "
            "another --protected, or more --examples."
        )


def protection(labels: NDArray[np.int64], predictions: NDArray[np.int64], label: int) -> Protection:
    """Compute accuracies around one class.

    Args:
        labels: True classes, (n,).
        predictions: Predicted classes, (n,), of clean or of adversarial images.
        label: The protected class.

    Raises:
        ValueError: No sample of this class, or of no other.
    """
    check_protected(labels, label)
    own, correct = labels == label, labels == predictions
    accuracies = (correct[own], correct[~own], predictions[~own] == label, correct)
    return Protection(label, *(float(flags.mean()) for flags in accuracies))


def mean_protection(found: Sequence[Protection]) -> float:
    """Metric I of the paper: mean accuracy of the protected class over all models."""
    return float(np.mean([one.own for one in found]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze protection`."""
    parser.add_argument("--protected", type=int, nargs="+", required=True, help="protected class of each checkpoint")
    parser.add_argument("--eps", type=number(Fraction, above=0), help="e.g. 8/255; default: that of the training")
    parser.add_argument("--examples", type=positive, help="number of test images (default: all)")
    parser.add_argument("--autoattack", action="store_true", help="add AutoAttack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the accuracies to this file")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Attack the test images of each run, and make a table for each."""
    if len(options.protected) != len(options.ckpt):
        raise ValueError(
            f"--protected must have one class per checkpoint, got {len(options.protected)} classes and "
            f"{len(options.ckpt)} checkpoints. Pass as many classes as checkpoints."
        )
    runs = [load(checkpoint) for checkpoint in options.ckpt]
    for run, label in zip(runs, options.protected, strict=True):  # before any attack
        samples = run.samples(options.examples)
        parts = np.array_split(samples.ids, -(-len(samples) // AT_ONCE))
        check_protected(np.concatenate([samples.fetch(ids)[1].cpu().numpy() for ids in parts]), label)
    lines: list[str] = []
    found: dict[str, list[Protection]] = {}
    for checkpoint, run, label in zip(options.ckpt, runs, options.protected, strict=True):
        progress(f"attacks on {checkpoint}")
        rows = dict(_rows(run, label, options))
        for name, row in rows.items():
            found.setdefault(name, []).append(row)
        cells = [(name, *map(percent, (row.own, row.others, row.overall, row.taken))) for name, row in rows.items()]
        lines += [f"{checkpoint}: {class_name(run.datamodule.spec.class_names, label)} protected"]
        lines += table(("", "class", "others", "all", "taken for it"), *cells)
    if len(runs) > 1:
        means = ", ".join(f"{name} {percent(mean_protection(rows))}" for name, rows in found.items())
        lines += ["I, the mean over runs of the protected class:", means]
    content = {name: [asdict(row) for row in rows] for name, rows in found.items()}
    return Report(lines, {options.json: json_file(content)} if options.json else {})


def _rows(run: TrainedRun, label: int, options: argparse.Namespace) -> Iterator[tuple[str, Protection]]:
    """Accuracies on clean images, then under each attack."""
    norm, eps = run.module.attack.norm, options.eps or run.module.attack.eps
    pgd = PGD(eps, step_size=float(eps) / 8, steps=20, norm=norm, loss=margin)
    attacks: dict[str, Attack] = {"fgsm": FGSM(eps, norm=norm), "pgd": Restarts(pgd, 3)}
    if options.autoattack:
        attacks["autoattack"] = AutoAttack(eps, norm=norm)
    samples = run.samples(options.examples)
    for name, attack in attacks.items():
        result = Evaluation(run.model, attack, samples, seed=options.seed).run()
        if name == "fgsm":
            yield "clean", protection(result.labels, result.predictions, label)
        yield name, protection(result.labels, result.adversarial, label)
