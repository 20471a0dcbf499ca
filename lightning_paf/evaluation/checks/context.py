"""The model under examination, its samples, and the attacks that several checks look at."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack, raw_gradient
from lightning_paf.attacks.pgd import PGD
from lightning_paf.functional.losses import margin
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import frozen
from lightning_paf.specs import DatasetSpec
from lightning_paf.types import Norm, PerExampleLoss, Radius

STEPS, MANY_STEPS, FURTHER_STARTS = 10, 100, 4


@dataclass
class Patient:
    """A model with the samples it is examined on. Every method leaves the model as it was.

    Attributes:
        model: Images (N, C, H, W) to logits.
        x: Images (n, C, H, W), floating point.
        y: Labels (n,).
        eps: Radius of the threat model.
        norm: Its norm, linf or l2.
        seed: Of everything random.
        surrogate: A model to transfer attacks from.
        spec: Statistics of the dataset.
        batch_size: Images in a forward pass.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: Radius
    norm: Norm
    seed: int
    surrogate: nn.Module | None
    spec: DatasetSpec | None
    batch_size: int

    @property
    def largest_radius(self) -> float:
        """A ball of this radius around any image holds every other image: the unit box, or its diagonal up to 50."""
        return 1.0 if self.norm == "linf" else min(math.sqrt(self.x[0].numel()), 50.0)

    def logits(self, x: Tensor) -> Tensor:
        """Outputs in eval mode (N, num_classes), without a graph."""
        with torch.no_grad(), frozen(self.model):
            return torch.cat([self.model(part) for part in torch.split(x, self.batch_size)])

    def handed_in_logits(self, x: Tensor) -> Tensor:
        """Outputs of one batch in the mode the model came in, without a trace in its buffers."""
        with torch.no_grad(), _own_buffers(self.model):
            outputs: Tensor = self.model(x)
            return outputs

    def seeded(self) -> None:
        """Rewind torch's generators, so that a random model repeats its draws for a batch of the same shape."""
        torch.manual_seed(self.seed)

    @cached_property
    def clean_logits(self) -> Tensor:
        """Outputs in eval mode for the samples (n, num_classes)."""
        return self.logits(self.x)

    @cached_property
    def correct(self) -> Tensor:
        """Which samples are classified correctly (n,)."""
        return ~misclassified(self.clean_logits, self.y)

    @cached_property
    def under_quick_attack(self) -> Tensor:
        """Which samples stand against ten steps of PGD on the margin (n,)."""
        return self.survivors(self.pgd(margin, STEPS, 1 / 4), self.correct)

    @cached_property
    def under_more_starts(self) -> Tensor:
        """Which samples stand after further starts of the same attack (n,)."""
        standing = self.under_quick_attack
        for _ in range(FURTHER_STARTS):
            standing = self.survivors(self.pgd(margin, STEPS, 1 / 4), standing)
        return standing

    @cached_property
    def under_more_steps(self) -> Tensor:
        """Which samples stand after a hundred steps as well (n,)."""
        return self.survivors(self.pgd(margin, MANY_STEPS, 1 / 10), self.under_quick_attack)

    @property
    def under_white_box(self) -> Tensor:
        """Which samples stand against all of these (n,)."""
        return self.under_more_starts & self.under_more_steps

    def pgd(self, loss: PerExampleLoss, steps: int, step: float, radius: Radius | None = None) -> PGD:
        """PGD in the threat model, or at another radius; `step` is a share of the radius."""
        radius = self.eps if radius is None else radius
        return PGD(radius, step_size=step * float(radius), steps=steps, norm=self.norm, loss=loss)

    def survivors(self, attack: Attack, standing: Tensor, source: nn.Module | None = None) -> Tensor:
        """Which of the standing samples are classified correctly under an attack as well (n,).

        Args:
            attack: What to run, on these samples alone.
            standing: Which samples to attack (n,).
            source: The model that the attack sees, where it is another one.
        """
        left = standing.clone()
        for places in torch.split(standing.nonzero().flatten(), self.batch_size):
            x_adv = attack(source or self.model, self.x[places], self.y[places])
            left[places] = ~misclassified(self.logits(x_adv), self.y[places])
        return left

    def gradients(self, loss: PerExampleLoss, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Gradients of a loss (N, C, H, W), in eval mode, NaN included."""
        with torch.enable_grad(), frozen(model):
            parts = zip(torch.split(x, self.batch_size), torch.split(y, self.batch_size), strict=True)
            return torch.cat([raw_gradient(model, *part, loss)[2] for part in parts])


@contextmanager
def _own_buffers(model: nn.Module) -> Iterator[None]:
    """Let forward passes write to copies of the buffers."""
    originals = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        for module, buffers in originals:
            module._buffers.update({name: b.clone() for name, b in buffers.items() if b is not None})
        yield
    finally:
        for module, buffers in originals:
            module._buffers.update(buffers)
