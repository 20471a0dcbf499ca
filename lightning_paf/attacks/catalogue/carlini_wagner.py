"""The l2 attack of Carlini and Wagner."""

from fractions import Fraction

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.minimal import MinimalAttack, Nearest
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import with_finite_gradient
from lightning_paf.functional.losses import margin
from lightning_paf.functional.predictions import misclassified, undefined_first
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, Radius

_INSIDE = 1 - 1e-6  # tanh reaches the ends of the pixel range only at infinity
_CHECKS, _IMPROVEMENT = 10, 0.9999  # of the early stop in the authors' code


class CarliniWagner(MinimalAttack):
    """Carlini-Wagner l2 attack (Carlini & Wagner 2017, section 5), untargeted.

    It minimises the squared distance plus `c` times the hinge of the margin.

    The image is `(tanh w + 1) / 2`, and Adam optimises `w`. For each image a binary search finds the smallest `c` that
    succeeds: it multiplies `c` by ten until one succeeds, then bisects.

    Args:
        eps: l2 radius within which a result counts as adversarial.
        steps: Steps of Adam for each `c`; 10,000 in the paper.
        searches: Values of `c` for each image.
        lr: Learning rate of Adam.
        initial_c: The first `c`.
        confidence: Required margin of a wrong logit.
        abort_early: End a search whose objective has not improved in the last tenth of its steps.
        mode: Mode of the attacked model: `eval`, or `train` with its buffers protected.
        target: See `Attack`.

    Raises:
        ValueError: `steps` or `searches` is below 1, `lr` or `initial_c` is not positive, or `confidence` is negative;
            see also `Attack`.
    """

    settings = ("steps", "searches", "lr", "initial_c", "confidence", "abort_early")

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        steps: int = 1000,
        searches: int = 9,
        lr: float = 0.01,
        initial_c: float = 1e-3,
        confidence: float = 0.0,
        abort_early: bool = True,
        mode: Mode = "eval",
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm="l2", mode=mode, target=target)
        self.steps, self.searches, self.lr = steps, searches, lr
        self.initial_c, self.confidence, self.abort_early = initial_c, confidence, abort_early
        self.require(steps=1, searches=1, confidence=0)
        self.require_positive("lr", "initial_c")

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest adversarial images and their distances."""
        nearest, all_rows = Nearest(x, "l2"), torch.arange(len(x), device=x.device)
        with torch.no_grad():
            nearest.update(all_rows, x, misclassified(forward(x), y))
        rows = all_rows[nearest.distances > 0]
        low, high = torch.zeros(len(rows), device=x.device), torch.full((len(rows),), torch.inf, device=x.device)
        c = torch.full_like(low, self.initial_c)
        for _ in range(self.searches):
            if len(rows) == 0:
                break
            found = self._search(forward, x[rows], y[rows], c, nearest, rows)
            low, high = torch.where(found, low, c), torch.where(found, c, high)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        return nearest.x, nearest.distances

    def _search(self, forward: Forward, x: Tensor, y: Tensor, c: Tensor, nearest: Nearest, rows: Tensor) -> Tensor:
        """Run Adam with one `c` per image (n,); return the mask of fooled images (n,)."""
        w = torch.atanh((2 * x - 1) * _INSIDE)
        optimizer, found, before = torch.optim.Adam([w], self.lr), torch.zeros_like(y, dtype=torch.bool), torch.inf
        w.requires_grad_()
        every = max(1, self.steps // _CHECKS)
        for step in range(self.steps):
            points = (torch.tanh(w) + 1) / 2
            logits = forward(with_finite_gradient(points))
            margins = margin(logits, y)
            objective = (points - x).flatten(1).square().sum(1) + c * (self.confidence - margins).clamp_min(0)
            (w.grad,) = torch.autograd.grad(objective.sum(), w)
            fooled = undefined_first(margins.detach(), logits) > self.confidence
            nearest.update(rows, points.detach(), fooled)
            found |= fooled
            if self.abort_early and step % every == 0:
                now = float(objective.detach().sum())
                if now > before * _IMPROVEMENT:
                    break
                before = now
            optimizer.step()
        return found
