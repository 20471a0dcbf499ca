"""The sensitivity-based l2 attack."""

from fractions import Fraction

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.jacobian import logit_gradients
from lightning_paf.attacks.catalogue.minimal import MinimalAttack, Nearest
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import Bounds
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, Radius


class SensitivityL2(MinimalAttack):
    """Equal l2 steps to the nearest linearised decision boundary.

    Each step follows `v_i = kappa P_i - P_c` of the class i with the smallest `(z_c - kappa z_i) / |v_i|`, where z are
    the logits, P their derivatives by the image, and c the predicted class. Points are clamped to `bounds`. Beyond the
    boundary the steps lead back, so that the points stay near it; the nearest adversarial one counts. Jaroudi et al.,
    "Standalone Neural ODEs with Sensitivity Analysis", arXiv:2205.13933, 2022.

    Args:
        eps: l2 radius within which a result counts as adversarial.
        steps: Number of steps.
        step_size: l2 length of a step, in units of pixels.
        kappa: Factor of the other logits, in (0, 1]; below 1 it moves boundaries of positive logits outwards.
        target: See `Attack`.
        mode: Mode of the attacked model: `eval`, or `train` with its buffers protected.
        bounds: Smallest and largest pixel value; null for unbounded inputs.

    Raises:
        ValueError: `steps` is below 1, `step_size` is not positive, `kappa` is not in (0, 1]; see
            also `Attack`.
    """

    settings = ("steps", "step_size", "kappa")

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        steps: int = 30,
        step_size: Radius = 0.03,
        kappa: float = 0.975,
        target: Target = None,
        mode: Mode = "eval",
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(eps, norm="l2", mode=mode, bounds=bounds, target=target)
        self.steps, self.step_size, self.kappa = steps, step_size, kappa
        self.require(steps=1)
        self.require_length("step_size")
        if not 0 < kappa <= 1:
            raise ValueError(f"kappa must be in (0, 1], got {kappa}. Pass kappa=0.975.")

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest adversarial images and their distances."""
        nearest, rows, points = Nearest(x, self.norm), torch.arange(len(x), device=x.device), x
        with torch.no_grad():
            classes = torch.arange(forward(x[:1]).shape[1], device=x.device)
        for number in range(self.steps):
            logits, gradients = logit_gradients(forward, points, classes.expand(len(points), -1))
            wrong = misclassified(logits, y[rows])
            nearest.update(rows, points, wrong)
            if number == 0:
                rows, points, logits, gradients = rows[~wrong], points[~wrong], logits[~wrong], gradients[~wrong]
            if len(rows) == 0:
                return nearest.x, nearest.distances
            points = points + float(self.step_size) * self._direction(logits, gradients)
            points = points if self.bounds is None else points.clamp(*self.bounds)
        with torch.no_grad():
            nearest.update(rows, points, misclassified(forward(points), y[rows]))
        return nearest.x, nearest.distances

    def _direction(self, logits: Tensor, gradients: Tensor) -> Tensor:
        """Unit vectors (n, C, H, W) to the nearest boundary; 0 without a gradient."""
        flat, current = gradients.flatten(2), logits.argmax(1, keepdim=True)
        own = flat.gather(1, current[:, :, None].expand(-1, 1, flat.shape[2]))
        normals = self.kappa * flat - own
        lengths = normals.norm(dim=2)
        reachable = (lengths > 0).scatter(1, current, False)
        gaps = (logits.gather(1, current) - self.kappa * logits) / lengths.clamp_min(torch.finfo(flat.dtype).tiny)
        choice = gaps.masked_fill(~reachable, torch.inf).argmin(1, keepdim=True)
        normal = normals.gather(1, choice[:, :, None].expand_as(own)).squeeze(1)
        length = lengths.gather(1, choice).clamp_min(torch.finfo(flat.dtype).tiny)
        direction = torch.where(reachable.gather(1, choice), normal / length, 0.0)
        return direction.view_as(gradients[:, 0])
