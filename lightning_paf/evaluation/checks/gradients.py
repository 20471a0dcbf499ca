"""Gradients that are missing, or that are not those of the model."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_paf.evaluation.checks.base import Finding, Symptom, is_frequent, percent, share
from lightning_paf.evaluation.checks.context import Patient
from lightning_paf.functional.losses import cross_entropy, margin
from lightning_paf.nn.modes import frozen

_MOST_STILL_PIXELS = 0.5
"""A masked gradient leaves most pixels without a slope; dead units and crops leave some."""


_JITTER = 0.1
"""Uniform noise in the images on which derivatives are compared, as a fraction of the pixel range."""

_POINTS = 8
"""Gradients whose mean is compared with a central difference, so that kinks within a long step count in both."""


class ZeroGradients(Symptom):
    """Gradients with respect to the image must exist and be numbers, for cross-entropy and for the margin."""

    name = "zero-gradients"
    why = "Gradient attacks do not move where there is no gradient: they report robustness that is not there."
    remedy = (
        "Look for rounding, detach(), thresholds, or float16 before the loss; attack with a differentiable stand-in of "
        "that layer (BPDA, Athalye et al. 2018), and judge by Square. If cross-entropy alone is concerned, its softmax "
        "has saturated: attack the margin or DLR."
    )

    def examine(self, patient: Patient) -> Finding:
        """Count samples and pixels without a gradient, among the correctly classified."""
        x, y = patient.x[patient.correct], patient.y[patient.correct]
        of_loss = {
            "cross-entropy": patient.gradients(cross_entropy, patient.model, x, y),
            "margin": patient.gradients(margin, patient.model, x, y),
        }
        counts = {name: _Count.of(gradient) for name, gradient in of_loss.items()}
        evidence = "without a gradient: " + "; ".join(f"{count} ({name})" for name, count in counts.items())
        return self.finding(
            all(count.healthy for count in counts.values()),
            evidence,
            **{name: vars(count) for name, count in counts.items()},
        )


@dataclass(frozen=True)
class _Count:
    samples: int
    without: int
    not_finite: int
    still_pixels: float

    @classmethod
    def of(cls, gradient: Tensor) -> "_Count":
        """Count in gradients (N, C, H, W)."""
        flat = gradient.flatten(1)
        without, not_finite = (flat == 0).all(dim=1), ~flat.isfinite().all(dim=1)
        still = share(flat[~without] == 0) if not without.all() else 1.0
        return cls(len(flat), int(without.sum()), int(not_finite.sum()), still)

    @property
    def healthy(self) -> bool:
        """Whether an attack can use them."""
        rare = not is_frequent(self.without, self.samples)
        return rare and self.not_finite == 0 and self.still_pixels <= _MOST_STILL_PIXELS

    def __str__(self) -> str:
        text = f"{self.without} of {self.samples} samples"
        if self.without < self.samples:
            text += f", {percent(self.still_pixels)} of the others' pixels"
        return text + (f", NaN or infinite in {self.not_finite} samples" if self.not_finite else "")


class FiniteDifferences(Symptom):
    """The derivative of the margin along a random direction, measured and by autograd."""

    name = "finite-differences"
    why = "Where autograd disagrees with the function itself, a gradient attack climbs something else than the model."
    remedy = (
        "Look for detach(), no_grad, straight-through estimators and custom backward functions. If the difference is "
        "wanted, state it, and judge by an attack that needs no gradient (Square) as well."
    )

    def examine(self, patient: Patient) -> Finding:
        """Compare, in double precision where the model can be cast, and count the samples that disagree."""
        ruler = _ruler(patient)
        wrong = ruler.disagreements(patient, patient.x[patient.correct], patient.y[patient.correct])
        count, total = int(wrong.sum()), len(wrong)
        evidence = (
            f"measured and computed derivative differ by more than {100 * ruler.tolerance:g} % for {count} of {total} "
            f"samples ({ruler.precision})"
        )
        values = {"samples": total, "disagree": count, "precision": ruler.precision}
        return self.finding(not is_frequent(count, total), evidence, **values)


@dataclass(frozen=True)
class _Ruler:
    """A central difference over `step` (l2 distance), and how far it may be from the derivative."""

    model: nn.Module
    dtype: torch.dtype
    step: float
    tolerance: float
    precision: str

    def disagreements(self, patient: Patient, x: Tensor, y: Tensor) -> Tensor:
        """Which samples (N,) have two different derivatives."""
        # Off the border of the pixel range, where a clamp in the model has a kink, and off ties in flat regions, where
        # max-pooling and ReLU have one.
        x = 2 * self.step + (1 - 4 * self.step) * x.to(self.dtype).lerp(torch.rand_like(x, dtype=self.dtype), _JITTER)
        direction = torch.randn_like(x)
        direction /= direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        gradient = torch.zeros_like(x)
        for fraction in torch.linspace(-1, 1, 2 * _POINTS + 1).tolist()[1::2]:
            patient.seeded()
            gradient += patient.gradients(margin, self.model, x + fraction * self.step * direction, y) / _POINTS
        ahead, behind = (self._margins(patient, x + sign * self.step * direction, y) for sign in (1, -1))
        measured, computed = (ahead - behind) / (2 * self.step), (gradient * direction).flatten(1).sum(dim=1)
        usual = gradient.flatten(1).norm(dim=1) / direction[0].numel() ** 0.5  # of a derivative in a random direction
        size = torch.stack([measured.abs(), computed.abs(), usual]).amax(dim=0)
        rounding = 10 * torch.finfo(self.dtype).eps * torch.maximum(ahead.abs(), behind.abs()) / self.step
        return ~((measured - computed).abs() <= self.tolerance * size + rounding)  # NaN disagrees

    def _margins(self, patient: Patient, x: Tensor, y: Tensor) -> Tensor:
        patient.seeded()
        with torch.no_grad(), frozen(self.model):
            return margin(torch.cat([self.model(part) for part in torch.split(x, patient.batch_size)]), y)


def _ruler(patient: Patient) -> _Ruler:
    """In double precision a step so short that hardly a kink lies in it; in single one that rises above rounding."""
    try:
        double = copy.deepcopy(patient.model).double()
        fits = _resolves_double(double, patient.x[:1].double())
    except (RuntimeError, TypeError):  # a layer with a fixed precision, or a model that cannot be copied
        fits = False
    if fits:
        return _Ruler(double, torch.float64, 1e-5, 0.01, "float64")
    return _Ruler(patient.model, patient.x.dtype, 0.05, 0.25, "single precision")


@torch.no_grad()
def _resolves_double(model: nn.Module, x: Tensor) -> bool:
    """Whether changes far below single precision reach the logits: no layer rounds on the way."""
    x = x.clamp(0.25, 0.75)  # near zero, single precision resolves such changes too
    with frozen(model):
        logits = model(x)
        return logits.dtype == torch.float64 and not torch.equal(logits, model(x + 1e-11 * torch.randn_like(x)))
