"""Model, samples and threat model of the sanity checks, and shared results."""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack, raw_gradient
from lightning_paf.attacks.pgd import PGD
from lightning_paf.attacks.probe import probe
from lightning_paf.evaluation.statistics import exact_accuracy, paired_difference
from lightning_paf.functional.losses import hard_labels, margin
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.equivalence import generators_kept
from lightning_paf.nn.modes import buffers_kept, frozen
from lightning_paf.specs import DatasetSpec
from lightning_paf.types import Norm, PerExampleLoss, Radius

STEPS, MANY_STEPS, RESTARTS = 10, 100, 4

MAX_GAIN = 0.05
"""Largest accepted loss of accuracy under a stronger attack.

A fraction of all samples. Between PGD on cross-entropy and AutoAttack, well-trained networks lose up to about 5 points
(Croce & Hein 2020, tables 2 and 3); masked gradients cost tens of points."""

MAX_FRACTION = 0.01
"""Largest accepted fraction of failing samples."""


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        name: Name of the check, such as `zero-gradients`.
        passed: Whether the check found no error; None if it was skipped.
        measured: Measurement in one sentence without a full stop.
        hint: Consequence of a failure, and its usual fixes.
        values: Measured numbers, ready for JSON.
        skipped: Reason for skipping the check.
    """

    name: str
    passed: bool | None
    measured: str = ""
    hint: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None


@dataclass
class Context:
    """A model with samples, a threat model, and cached results of shared attacks.

    Attributes:
        model: Images (N, C, H, W) in [0, 1] to logits (N, num_classes), in the mode of the evaluation.
        x: Images (n, C, H, W), at least 20; 100 are usual.
        y: Labels (n,) int64, or distributions over the classes (n, num_classes).
        eps: Radius of the threat model.
        norm: `linf` or `l2`.
        seed: Seed of all random numbers.
        surrogate: Model of the same task to transfer attacks from. Default: `model` with estimated gradients.
        spec: Dataset whose mean and standard deviation are tried as a missing normalisation.
        batch_size: Images in a forward pass.

    Raises:
        ValueError: Images, labels, outputs or norm that the checks do not support.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: Radius
    norm: Norm = "linf"
    seed: int = 0
    surrogate: nn.Module | None = None
    spec: DatasetSpec | None = None
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm must be linf or l2, got {self.norm!r}. Pass --norm linf or --norm l2.")
        if self.x.dim() != 4 or len(self.x) < 20:
            shape = tuple(self.x.shape)
            raise ValueError(f"x must be at least 20 images (n, C, H, W), got shape {shape}. Pass --examples 100.")
        self.x = self.x if self.x.is_floating_point() else self.x.float()
        self.model = probe(self.model, self.x, self.y).model
        self.y = hard_labels(self.y)

    @contextmanager
    def isolated(self, stream: str) -> Iterator[None]:
        """Seed all random generators by `stream`, and restore them and the buffers."""
        with generators_kept(self.model, self.x.device), buffers_kept(self.model, alone=False):
            seed = zlib.crc32(f"{self.seed} {stream}".encode())
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield

    def logits(self, x: Tensor, model: nn.Module | None = None) -> Tensor:
        """Outputs (N, num_classes) in eval mode, without a graph."""
        model = model or self.model
        with torch.no_grad(), frozen(model):
            return torch.cat([model(part) for part in torch.split(x, self.batch_size)])

    def gradients(self, loss: PerExampleLoss, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Gradients of a loss (N, C, H, W) in eval mode, NaN included."""
        with torch.enable_grad(), frozen(model):
            parts = zip(torch.split(x, self.batch_size), torch.split(y, self.batch_size), strict=True)
            return torch.cat([raw_gradient(model, *part, loss)[2] for part in parts])

    def pgd(
        self, loss: PerExampleLoss = margin, steps: int = STEPS, step: float = 1 / 4, radius: float | None = None
    ) -> PGD:
        """PGD, by default at `eps`; `step` is a fraction of the radius."""
        eps = self.eps if radius is None else radius
        return PGD(eps, step_size=step * float(eps), steps=steps, norm=self.norm, loss=loss)

    def robust_to(self, attack: Attack, robust: Tensor, source: nn.Module | None = None) -> Tensor:
        """Attack `robust` samples (n,), by default on the model; return the rest (n,)."""
        remaining = robust.clone()
        for index in torch.split(robust.nonzero().flatten(), self.batch_size):
            x_adv = attack(source or self.model, self.x[index], self.y[index])
            remaining[index] = ~misclassified(self.logits(x_adv), self.y[index])
        return remaining

    @cached_property
    def clean_logits(self) -> Tensor:
        """Outputs for the samples (n, num_classes)."""
        with self.isolated("clean"):
            return self.logits(self.x)

    @cached_property
    def correct(self) -> Tensor:
        """Samples that are classified correctly (n,)."""
        return ~misclassified(self.clean_logits, self.y)

    @cached_property
    def robust_to_pgd(self) -> Tensor:
        """Samples that are robust to ten steps of PGD on the margin (n,)."""
        with self.isolated("pgd"):
            return self.robust_to(self.pgd(), self.correct)

    @cached_property
    def robust_to_restarts(self) -> Tensor:
        """Samples that are also robust to further random starts (n,)."""
        robust = self.robust_to_pgd
        with self.isolated("restarts"):
            for _ in range(RESTARTS):
                robust = self.robust_to(self.pgd(), robust)
        return robust

    @cached_property
    def robust_to_many_steps(self) -> Tensor:
        """Samples that are also robust to a hundred steps (n,)."""
        with self.isolated("steps"):
            return self.robust_to(self.pgd(steps=MANY_STEPS, step=1 / 10), self.robust_to_pgd)

    @property
    def robust_to_white_box(self) -> Tensor:
        """Samples that are robust to all of these attacks (n,)."""
        return self.robust_to_restarts & self.robust_to_many_steps


def is_large_gain(before: Tensor, after: Tensor) -> bool:
    """Return whether accuracy falls by more than `MAX_GAIN`, beyond sampling error."""
    only_before, only_after = int((before & ~after).sum()), int((after & ~before).sum())
    return paired_difference(only_before, only_after, len(before)).low > MAX_GAIN


def smallest_visible_gain(total: int) -> float:
    """Smallest loss of accuracy that `is_large_gain` detects in `total` samples."""
    return next((k / total for k in range(total + 1) if paired_difference(k, 0, total).low > MAX_GAIN), 1.0)


def is_frequent(count: int, total: int) -> bool:
    """Return whether more than `MAX_FRACTION` fail, beyond sampling error."""
    return total > 0 and exact_accuracy(count, total).low > MAX_FRACTION


def fraction(flags: Tensor) -> float:
    """Fraction of the true entries."""
    return float(flags.double().mean())


def percent(value: float | Tensor) -> str:
    """Format a fraction, or the fraction of the true entries, as `41.0 %`."""
    return f"{100 * fraction(torch.as_tensor(value)):.1f} %"
