"""Projected gradient descent along smoothed gradients."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack, raw_gradient
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import finite_gradient, geometry_of, per_example
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified
from lightning_paf.speed.search_model import SearchModel
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius


class SmoothedPGD(Attack):
    """PGD along gradients of a smoothed network, then along exact ones.

    Adversarial training can leave a network flat around an image. Units that are off pass no gradient, so gradients
    within the ball do not point to an adversarial image that exists. Those of a smoothed network do: its activations
    are softened (see `SoftenedModel`), and its images are moved by Gaussian noise, one draw in each step. Moved points
    can lie outside `bounds`, the results cannot.

    A search for one image, target class and width of the noise is a lane. It starts uniformly in the ball and increases
    the difference of the logits of target and label, by steps that fall linearly from `eps / 2` to 0. The last steps
    are without noise. All lanes of an image end with its first success. Images without one, and images that are
    misclassified from the start, are returned unchanged.

    Where the attacked function has a method `exact` (see `SearchModel`), it confirms every success.

    Variance tuning (Wang & He 2021) also averages gradients over neighbours, within 1.5 eps, for transfer.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: `linf` or `l2`.
        steps: Gradients of every lane.
        smoothed_steps: Number of first steps whose gradients are those of the smoothed network; less than `steps`.
        targets: Number of target classes, in the order of the clean logits, at most all others.
        widths: Size of the noise, in units of `eps`: standard deviation of a pixel in linf, expected length in l2.
        softening: Width of the softened activations for noise of one `eps`, in root mean squares of their inputs;
            proportional to the noise. 0 leaves the activations as they are.
        batch_size: Lanes searched at once.
        target: See `Attack`.

    Raises:
        ValueError: `norm` is l1, a number is below 1, `steps` is not above `smoothed_steps`, `widths` is empty or not
            positive, or `softening` is negative; see also `Attack`. In the call: `loss` or `forward` is given.
    """

    fixed_loss = True
    settings = ("steps", "smoothed_steps", "targets", "widths", "softening", "batch_size")

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        steps: int = 64,
        smoothed_steps: int = 40,
        targets: int = 9,
        widths: Sequence[float] = (1.0, 2.0, 4.0),
        softening: float = 0.125,
        batch_size: int = 250,
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm=norm, target=target)
        if norm == "l1":
            raise ValueError("norm of SmoothedPGD must be linf or l2, got 'l1'. Pass PGD for l1.")
        self.steps, self.smoothed_steps, self.targets = steps, smoothed_steps, targets
        self.widths, self.softening, self.batch_size = list(widths), softening, batch_size
        self.require(smoothed_steps=1, steps=smoothed_steps + 1, targets=1, batch_size=1)
        if not self.widths or not all(0 < width < math.inf for width in self.widths):
            raise ValueError(f"widths must be positive and finite, got {self.widths}. Pass widths=[1, 2, 4].")
        if not 0 <= softening < math.inf:
            raise ValueError(f"softening must be at least 0 and finite, got {softening}. Pass softening=0.125.")

    @property
    def label(self) -> str:
        """`smoothed-pgd`."""
        return "smoothed-pgd"

    def _path(self, model: nn.Module) -> Forward:
        """A `SearchModel`, which can soften the activations."""
        return model if self.softening == 0 or hasattr(model, "exact") else SearchModel(model, fold=self.fold)

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Return the first adversarial image of each sample, else the clean image."""
        del loss
        y, x_adv = hard_labels(y), x.clone()
        with torch.no_grad():
            logits = torch.cat([forward(part) for part in torch.split(x, self.batch_size)])
        lanes, robust = self._lanes(logits, y), ~misclassified(logits, y)
        for rows in torch.split(torch.arange(len(lanes.sample), device=x.device), self.batch_size):
            self._search(forward, x, y, lanes.picked(rows), x_adv, robust)
        return x_adv

    def _lanes(self, logits: Tensor, y: Tensor) -> "_Lanes":
        """All lanes, those of the most likely targets first."""
        others = logits.scatter(1, y[:, None], -torch.inf)
        ranked = others.topk(min(self.targets, logits.shape[1] - 1), dim=1).indices.T
        shape = (len(ranked), len(self.widths), len(y))
        sample = torch.arange(len(y), device=y.device).expand(shape)
        width = logits.new_tensor(self.widths)[:, None].expand(shape)
        return _Lanes(sample.flatten(), ranked[:, None].expand(shape).flatten(), width.flatten())

    def _search(
        self, forward: Forward, images: Tensor, labels: Tensor, lanes: "_Lanes", x_adv: Tensor, robust: Tensor
    ) -> None:
        """Run lanes; write successes into `x_adv` (N, C, H, W) and `robust` (N,)."""
        ball = geometry_of(self.norm)
        lanes = lanes.picked(robust[lanes.sample])
        moved = self._starts(forward, images[lanes.sample], labels[lanes.sample])
        for step in range(self.steps):
            if len(lanes.sample) == 0:
                return
            x, y = images[lanes.sample], labels[lanes.sample]
            logits, gradient = self._gradient(forward, moved, y, lanes, smoothed=step < self.smoothed_steps)
            ascent = ball.ascent(finite_gradient(gradient), moved, self.bounds)
            ahead = ball.move(
                x, moved + self.radius / 2 * (1 - step / self.steps) * ascent - x, self.radius, self.bounds
            )
            if step >= self.smoothed_steps and bool((wrong := misclassified(logits, y)).any()):
                self._confirm(forward, moved[wrong], y[wrong], lanes.sample[wrong], x_adv, robust)
                keep = robust[lanes.sample]
                lanes, ahead = lanes.picked(keep), ahead[keep]
            moved = ahead

    def _starts(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """First points (B, C, H, W) of lanes."""
        del forward, y
        ball = geometry_of(self.norm)
        return ball.move(x, ball.uniform(x, self.radius), self.radius, self.bounds)

    def _gradient(
        self, forward: Forward, x: Tensor, y: Tensor, lanes: "_Lanes", *, smoothed: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and gradient (B, C, H, W), at moved points if `smoothed`."""
        at = x + self._noise(x, lanes.width) if smoothed else x
        if smoothed and self.softening > 0 and hasattr(forward, "softened"):
            forward = partial(forward.softened, softness=self.softening * lanes.width)
        logits, _, gradient = raw_gradient(forward, at, y, lanes.lead)
        return logits, gradient

    def _noise(self, x: Tensor, width: Tensor) -> Tensor:
        scale = self.radius if self.norm == "linf" else self.radius / math.sqrt(x[0].numel())
        return torch.randn_like(x) * per_example(width * scale, x)

    @staticmethod
    @torch.no_grad()
    def _confirm(forward: Forward, found: Tensor, y: Tensor, sample: Tensor, x_adv: Tensor, robust: Tensor) -> None:
        confirmed = misclassified(getattr(forward, "exact", forward)(found), y)
        x_adv[sample[confirmed]] = found[confirmed]
        robust[sample[confirmed]] = False


class _Lanes(NamedTuple):
    """Searches: sample, target class and width of the noise, (B,) each."""

    sample: Tensor
    target: Tensor
    width: Tensor

    def picked(self, rows: Tensor) -> "_Lanes":
        """The lanes of an index or a mask."""
        return _Lanes(*(value[rows] for value in self))

    def lead(self, logits: Tensor, y: Tensor) -> Tensor:
        """Difference (B,) of the logits of target and label."""
        return (logits.gather(1, self.target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
