"""The DeepFool attack."""

from fractions import Fraction

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.jacobian import logit_gradients
from lightning_paf.attacks.catalogue.minimal import MinimalAttack, Nearest
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import Bounds
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, Norm, Radius

_PAST_TIE = 1e-4  # as in the authors' code


class DeepFool(MinimalAttack):
    """DeepFool: steps to the nearest linearised decision boundary.

    Moosavi-Dezfooli, Fawzi & Frossard 2016.

    On a linear model the first step reaches the boundary; all steps are lengthened by 1e-4, which leaves exact ties,
    and by `overshoot`. As in the authors' code, the next linearisation is at the lengthened point. Points are clamped
    to `bounds`, and pixels at their ends are left out of a step; the authors have no bounds.

    Args:
        eps: Radius within which a result counts as adversarial.
        norm: `l2`, or `linf` (section 3.3 of the paper).
        steps: Maximum number of steps.
        overshoot: Extra length of a step, as a fraction of the step.
        candidates: Number of the most likely classes to consider, without the label.
        mode: Mode of the attacked model: `eval`, or `train` with its buffers protected.
        bounds: Smallest and largest pixel value; null for unbounded inputs.
        target: See `Attack`.

    Raises:
        ValueError: `norm` is l1, `steps` or `candidates` is below 1, or `overshoot` is not positive; see also `Attack`.
    """

    settings = ("steps", "overshoot", "candidates")

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
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm=norm, mode=mode, bounds=bounds, target=target)
        if norm == "l1":
            raise ValueError("norm of DeepFool must be l2 or linf, got 'l1'. Pass norm=l2.")
        self.steps, self.overshoot, self.candidates = steps, overshoot, candidates
        self.require(steps=1, candidates=1)
        self.require_positive("overshoot")

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest adversarial images and their distances."""
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
        """The label, then the most likely others (N, 1 + candidates)."""
        logits = forward(x).scatter(1, y[:, None], torch.inf)
        ranked: Tensor = logits.topk(min(self.candidates + 1, logits.shape[1]), dim=1).indices
        return ranked

    def _step(self, points: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        """Step to the nearest hyperplane, from values (n, k) and gradients (n, k, ...).

        The entry of the label comes first.
        """
        smallest = torch.finfo(values.dtype).tiny
        normals = (gradients[:, 1:] - gradients[:, :1]).flatten(2)
        if self.bounds is not None:
            flat = points.flatten(1)[:, None]
            stuck = ((flat <= self.bounds[0]) & (normals < 0)) | ((flat >= self.bounds[1]) & (normals > 0))
            normals = normals.masked_fill(stuck, 0.0)
        gaps = (values[:, 1:] - values[:, :1]).abs()
        lengths = normals.norm(p=2 if self.norm == "l2" else 1, dim=2)
        distances = torch.where(lengths > 0, gaps / lengths.clamp_min(smallest), torch.inf)
        distance, choice = distances.min(dim=1, keepdim=True)
        normal = normals.gather(1, choice[:, :, None].expand(-1, 1, normals.shape[2])).squeeze(1)
        length = lengths.gather(1, choice).clamp_min(smallest)
        direction = normal / length if self.norm == "l2" else normal.sign()
        return (torch.where(distance.isfinite(), distance + _PAST_TIE, 0.0) * direction).view_as(gradients[:, 0])
