"""One perturbation for all images."""

import copy
import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.catalogue.deepfool import DeepFool
from lightning_paf.attacks.target import Target, aims
from lightning_paf.functional.geometry import Bounds, geometry_of
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius
from lightning_paf.utils.hashing import tensor_bytes


class UniversalPerturbation(Attack):
    """Add one perturbation to every image (Moosavi-Dezfooli et al. 2017).

    It is fitted to a set of images. Where an image with the current perturbation is still classified correctly, the
    DeepFool step from there is added, and the sum projected onto the ball, until `rate` of the set is misclassified.
    `fitted` returns an attack with a perturbation; without one, every call fits one to its images.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1].
        norm: Norm of the perturbation. The steps of DeepFool are l2, as in the authors' code.
        perturbation: File with a tensor (C, H, W), as `torch.save(attack.perturbation, FILE)` writes it.
        rate: Fraction of misclassified images that ends the search.
        passes: Maximum number of passes over the set.
        steps: Maximum number of DeepFool steps per image.
        overshoot: Overshoot of DeepFool.
        mode: Mode of the attacked model: `eval`, or `train` with its buffers protected.
        bounds: Smallest and largest pixel value; null for unbounded inputs.
        target: See `Attack`.

    Raises:
        ValueError: `rate` is outside (0, 1], `passes` or `steps` is below 1, or the file holds no such tensor or one
            larger than `eps`; see also `Attack`. In the call: images have another shape.
    """

    fixed_loss = True
    settings = ("rate", "passes", "steps", "overshoot")

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        perturbation: Path | None = None,
        rate: float = 0.8,
        passes: int = 10,
        steps: int = 10,
        overshoot: float = 0.02,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm=norm, mode=mode, bounds=bounds, target=target)
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be a fraction in (0, 1], got {rate}. Pass rate=0.8.")
        self.rate, self.passes, self.steps, self.overshoot = rate, passes, steps, overshoot
        self.require(passes=1)
        self._deepfool = DeepFool(steps=steps, overshoot=overshoot, mode=mode, bounds=bounds)
        self.perturbation = None if perturbation is None else self._load(perturbation)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        delta = self.perturbation
        digest = None if delta is None else hashlib.sha256(tensor_bytes(delta)).hexdigest()[:16]
        return super().describe() | {"perturbation": digest}

    def fitted(self, model: nn.Module, x: Tensor, y: Tensor) -> Self:
        """A copy of this attack with a perturbation fitted to these images.

        Args:
            model: Images to logits. Left unchanged.
            x: Images (N, C, H, W) inside `bounds`. Not modified.
            y: Labels (N,).

        Raises:
            ValueError: No image, or a list of targets.
        """
        if len(x) == 0:
            raise ValueError("x must hold at least one image, got none. Pass some training images.")
        if isinstance(self.target, list):
            raise ValueError(f"target must be one class for one perturbation, got {self.target}. Pass target=3.")
        attack = copy.copy(self)
        with self._ready(model):
            x = self._own(x, y)
            for rows, forward, labels in aims(self._path(model), hard_labels(y.detach()), self.target):
                attack.perturbation = self._fit(forward, x[rows], labels)
        return attack

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Add the perturbation; fit it to these images if there is none."""
        del loss
        delta = self._fit(forward, x, hard_labels(y)) if self.perturbation is None else self.perturbation
        if delta.shape != x.shape[1:]:
            shape = tuple(delta.shape)
            raise ValueError(
                f"Images must have shape {shape} of the perturbation, got {tuple(x.shape[1:])}. Pass another one."
            )
        return self._added(x, delta.to(x))

    def _added(self, x: Tensor, delta: Tensor) -> Tensor:
        return geometry_of(self.norm).move(x, delta.expand_as(x), self.radius, self.bounds)

    def _fit(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """The perturbation (C, H, W)."""
        ball, delta = geometry_of(self.norm), torch.zeros_like(x[0])
        for _ in range(self.passes):
            for index in torch.randperm(len(x)).tolist():
                moved, label = self._added(x[index : index + 1], delta), y[index : index + 1]
                found, distance = self._deepfool.minimum(forward, moved, label)
                if 0 < float(distance) < torch.inf:
                    total = delta + (found - moved)[0]
                    delta = ball.project(total[None], ball.fraction_of_radius * self.radius)[0]
            with torch.no_grad():
                wrong = misclassified(forward(self._added(x, delta)), y).float().mean()
            if wrong >= self.rate:
                break
        return delta

    def _load(self, path: Path) -> Tensor:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises errors of many types
            raise ValueError(f"{path} cannot be read ({type(error).__name__}). Write it with torch.save.") from error
        if not isinstance(found, Tensor) or found.dim() != 3:
            raise ValueError(f"{path} must hold a tensor (C, H, W), got another object. Save `attack.perturbation`.")
        size = float(geometry_of(self.norm).size(found[None]))
        if size > self.radius * (1 + 1e-5):
            raise ValueError(
                f"The {self.norm} size of the perturbation must be at most eps={self.eps}, got {size:g}. Pass a larger "
                "eps."
            )
        return found
