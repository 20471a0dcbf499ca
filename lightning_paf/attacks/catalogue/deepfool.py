"""DeepFool."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.jacobian import logit_gradients
from lightning_paf.attacks.catalogue.minimal import MinimalAttack, Nearest
from lightning_paf.functional.geometry import Bounds
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, Norm, Radius


class DeepFool(MinimalAttack):
    """Steps to the nearest of the linearised decision boundaries (Moosavi-Dezfooli, Fawzi & Frossard 2016).

    On a linear model the first step ends exactly there; all steps are lengthened by `overshoot`. As in the authors'
    code, the next linearisation is made at the lengthened point. The point is brought into `bounds`, and pixels that
    cannot move any further take no part in a step; the authors know no bounds.

    Args:
        eps: Largest perturbation that counts.
        norm: `l2`, or `linf` (their section 3.3).
        steps: Most steps.
        overshoot: How much further than the boundary to go, as a share of the way.
        candidates: How many of the likeliest classes are considered besides the label.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.
        bounds: Smallest and largest pixel value; null for inputs without bounds.

    Raises:
        ValueError: As for every attack; norm l1; no step or candidate; an overshoot that is not positive.
    """

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        norm: Norm = "l2",
        steps: int = 50,
        overshoot: float = 0.02,
        candidates: int = 9,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(eps, norm=norm, mode=mode, bounds=bounds)
        if norm == "l1":
            raise ValueError("DeepFool works in l2 and linf, not in l1. Choose one of these.")
        if not overshoot > 0:
            raise ValueError(f"overshoot={overshoot} must be positive, or no boundary is crossed. The paper uses 0.02.")
        self.steps = steps
        self.overshoot = overshoot
        self.candidates = candidates
        self.require(steps=1, candidates=1)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        own = {"steps": self.steps, "overshoot": self.overshoot, "candidates": self.candidates}
        return super().describe() | own

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images and distances."""
        nearest, rows, points = Nearest(x, self.norm), torch.arange(len(x), device=x.device), x
        classes = self._classes(forward, x, y)
        for _ in range(self.steps + 1):
            logits, gradients = logit_gradients(forward, points, classes[rows])
            wrong = misclassified(logits, y[rows])
            nearest.update(rows, points, wrong)
            rows, points = rows[~wrong], points[~wrong]
            if len(rows) == 0:
                break
            values = logits[~wrong].gather(1, classes[rows])
            points = points + (1 + self.overshoot) * self._step(points, values, gradients[~wrong])
            points = points if self.bounds is None else points.clamp(*self.bounds)
        return nearest.x, nearest.distances

    @torch.no_grad()
    def _classes(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """The label, then the likeliest others (N, 1 + candidates)."""
        logits = forward(x).scatter(1, y[:, None], torch.inf)
        ranked: Tensor = logits.topk(min(self.candidates + 1, logits.shape[1]), dim=1).indices
        return ranked

    def _step(self, points: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        """The step to the nearest hyperplane, from values (n, k) and gradients (n, k, ...), the label's first."""
        smallest = torch.finfo(values.dtype).tiny
        normals = (gradients[:, 1:] - gradients[:, :1]).flatten(2)
        if self.bounds is not None:
            here = points.flatten(1)[:, None]
            stuck = ((here <= self.bounds[0]) & (normals < 0)) | ((here >= self.bounds[1]) & (normals > 0))
            normals = normals.masked_fill(stuck, 0.0)
        gaps = (values[:, 1:] - values[:, :1]).abs()
        lengths = normals.norm(p=2 if self.norm == "l2" else 1, dim=2)
        distances = torch.where(lengths > 0, gaps / lengths.clamp_min(smallest), torch.inf)
        distance, choice = distances.min(dim=1, keepdim=True)
        normal = normals.gather(1, choice[:, :, None].expand(-1, 1, normals.shape[2])).squeeze(1)
        length = lengths.gather(1, choice).clamp_min(smallest)
        direction = normal / length if self.norm == "l2" else normal.sign()
        flat = torch.where(distance.isfinite(), distance, 0.0) * direction
        return flat.view_as(gradients[:, 0])
