"""The sigma-zero attack on few entries."""

import math

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.minimal import MinimalAttack
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import finite_gradient, per_example
from lightning_paf.functional.losses import margin
from lightning_paf.functional.predictions import undefined_first
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward

_LAST = 0.1  # the last learning rate, in multiples of the first
_RATE = 0.01  # change of the threshold, in multiples of the learning rate


class SigmaZero(MinimalAttack):
    """Minimise the number of changed entries by gradients (Cinà et al. 2025).

    "Sigma-zero: Gradient-based optimization of l0-norm adversarial examples", ICLR 2025, arXiv:2402.01879.

    An entry is one channel of one pixel. Adam minimises the hinge of the margin plus the mean of `d^2 / (d^2 + sigma)`
    over the entries d of the perturbation, with gradients scaled to a largest entry of 1 and a cosine schedule. After
    every step, entries below a threshold become zero. The threshold rises at adversarial points and falls at others.

    The budget counts entries (l0). Since no entry moves by more than 1, it bounds the l1 norm, in which `norm`, `eps`
    and `radius` are given. The distances of `nearest` are numbers of entries.

    Args:
        entries: Number of changed entries within which a result counts as adversarial.
        steps: Number of gradients; 1,000 in the paper.
        lr: First learning rate of Adam.
        sigma: Smoothing of the number of entries.
        threshold: First threshold, in units of pixels.
        mode: Mode of the attacked model: `eval`, or `train` with its buffers protected.
        target: See `Attack`.

    Raises:
        ValueError: `entries` or `steps` is below 1, or `lr`, `sigma` or `threshold` is not positive; see also `Attack`.
    """

    settings = ("steps", "lr", "sigma", "threshold")

    def __init__(
        self,
        entries: int = 24,
        *,
        steps: int = 1000,
        lr: float = 1.0,
        sigma: float = 1e-3,
        threshold: float = 0.3,
        mode: Mode = "eval",
        target: Target = None,
    ) -> None:
        super().__init__(1, norm="l1", mode=mode, target=target)
        self.eps = self.entries = entries  # not checked: a number of entries can exceed every radius
        self.steps, self.lr, self.sigma, self.threshold = steps, lr, sigma, threshold
        self.require(entries=1, steps=1)
        self.require_positive("lr", "sigma", "threshold")

    @property
    def radius(self) -> float:
        """The number of entries, enlarged by rounding so that itself counts."""
        return self.entries * (1 + 2e-6)

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the adversarial images with the fewest entries, and these numbers."""
        found, fewest = x.clone(), torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        delta = torch.zeros_like(x)
        optimizer = torch.optim.Adam([delta], self.lr)
        threshold = torch.full_like(fewest, self.threshold)
        for step in range(self.steps + 1):
            values, delta.grad = self._gradient(forward, x, y, delta)
            adversarial = values > 0
            count = delta.count_nonzero(dim=tuple(range(1, x.ndim))).to(x.dtype)
            better = adversarial & (count < fewest)
            found = torch.where(per_example(better, x), (x + delta).clamp(0, 1), found)
            fewest = torch.where(better, count, fewest)
            if step == self.steps or not bool((fewest > 0).any()):
                break
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            rate = self.lr * (_LAST + (1 - _LAST) * cosine)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            delta.copy_((x + delta).clamp(0, 1) - x)
            threshold = (threshold + _RATE * rate * torch.where(adversarial, 1.0, -1.0)).clamp(0, 1)
            delta.masked_fill_(delta.abs() < per_example(threshold, x), 0)
        return found, fewest

    def _gradient(self, forward: Forward, x: Tensor, y: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Margins (n,), and the gradient of the objective with a largest entry of 1."""
        leaf = delta.detach().clone().requires_grad_()
        logits = forward(x + leaf)
        margins = margin(logits, y)
        (gradient,) = torch.autograd.grad((-margins).clamp_min(0).sum(), leaf)
        smooth = 2 * self.sigma * delta / (delta.square() + self.sigma).square() / delta[0].numel()
        gradient = finite_gradient(gradient) + smooth  # undefined logits count as adversarial
        largest = gradient.flatten(1).abs().amax(1).clamp_min(1e-12)
        return undefined_first(margins.detach(), logits), gradient / per_example(largest, x)
