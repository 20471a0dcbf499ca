"""Variants of the search of `strong` with as many gradients as `SmoothedPGD`: 64 for each of 9 targets and 3 starts."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.attacks import APGD, Attack, SmoothedPGD
from lightning_paf.attacks.base import raw_gradient
from lightning_paf.functional.geometry import geometry_of, per_example
from lightning_paf.types import Forward

STARTS, STEPS, SMOOTHED_STEPS, DIVERSIFIED_STEPS, CLASSES = 3, 64, 40, 10, 10


class NoisyAPGD(APGD):
    """APGD on the targeted DLR loss whose first losses and gradients are those of moved points.

    Args:
        eps: Largest perturbation.
        width: Standard deviation of the noise, in units of `eps`.
    """

    def __init__(self, eps: float, width: float) -> None:
        super().__init__(eps, search_loss="dlr-targeted", restarts=STARTS, steps=STEPS - 1)
        self.width = width

    def _evaluate(self, forward: Forward, lanes: Any, y: Tensor) -> None:
        scale = self.width * float(self.eps) * (lanes.age < SMOOTHED_STEPS).to(lanes.x)
        noise = per_example(scale, lanes.x) * torch.randn_like(lanes.x)
        super()._evaluate(lambda x: forward(x + noise), lanes, y)


class TransferredStarts(SmoothedPGD):
    """`SmoothedPGD` from perturbations of other images.

    Args:
        eps: Largest perturbation.
        found: Perturbations (M, C, H, W).
    """

    def __init__(self, eps: float, found: Tensor) -> None:
        super().__init__(eps)
        self.found = found

    def _starts(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        drawn = self.found[torch.randint(len(self.found), (len(x),))]
        return geometry_of(self.norm).move(x, drawn, self.radius, self.bounds)


class DiversifiedStarts(SmoothedPGD):
    """`SmoothedPGD` after steps along random combinations of the logits (ODI, Tashiro et al. 2020)."""

    def __init__(self, eps: float) -> None:
        super().__init__(eps, steps=STEPS - DIVERSIFIED_STEPS, smoothed_steps=SMOOTHED_STEPS - DIVERSIFIED_STEPS)

    def _starts(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        ball, moved = geometry_of(self.norm), super()._starts(forward, x, y)
        weights = 2 * torch.rand(len(x), CLASSES) - 1
        for _ in range(DIVERSIFIED_STEPS):
            gradient = raw_gradient(forward, moved, y, lambda logits, _: (weights * logits).sum(1))[2]
            moved = ball.move(x, moved + self.radius / 4 * gradient.sign() - x, self.radius, self.bounds)
        return moved


Variant = Callable[[nn.Sequential, float, Tensor], Attack]
"""Function from a network, eps and perturbations (M, C, H, W) of other images to an attack."""

VARIANTS: Mapping[str, Variant] = {
    "exact gradients": lambda net, eps, found: SmoothedPGD(eps, widths=[1e-6] * 3, softening=0),
    "noise of 1": lambda net, eps, found: SmoothedPGD(eps, widths=[1.0] * 3, softening=0),
    "noise of 2": lambda net, eps, found: SmoothedPGD(eps, widths=[2.0] * 3, softening=0),
    "noise of 4": lambda net, eps, found: SmoothedPGD(eps, widths=[4.0] * 3, softening=0),
    "noise of 1, 2, 4": lambda net, eps, found: SmoothedPGD(eps, softening=0),
    "softness 1/8, 1/4, 1/2": lambda net, eps, found: SmoothedPGD(eps, widths=[1e-3, 2e-3, 4e-3], softening=125),
    "noise of 1, 2, 4, softness 1/8, 1/4, 1/2 (default)": lambda net, eps, found: SmoothedPGD(eps),
    "noise of 1, 2, 4, softness 1/4, 1/2, 1": lambda net, eps, found: SmoothedPGD(eps, softening=0.25),
    "noise of 1/2, 1, 2, softness 1/8, 1/4, 1/2": lambda net, eps, found: SmoothedPGD(
        eps, widths=[0.5, 1.0, 2.0], softening=0.25
    ),
    "default, 20 smoothed steps": lambda net, eps, found: SmoothedPGD(eps, smoothed_steps=20),
    "default, 54 smoothed steps": lambda net, eps, found: SmoothedPGD(eps, smoothed_steps=54),
    "APGD-T": lambda net, eps, found: NoisyAPGD(eps, 0.0),
    "APGD-T, noise of 2": lambda net, eps, found: NoisyAPGD(eps, 2.0),
    "default, starts from other images": lambda net, eps, found: TransferredStarts(eps, found),
    "default, output-diversified starts": lambda net, eps, found: DiversifiedStarts(eps),
}
