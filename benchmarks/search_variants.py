"""Variants of the search of `strong` with as many gradients as `SmoothedPGD`: 80 for each of 9 targets and 3 starts."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.attacks import APGD, Attack, SmoothedPGD
from lightning_paf.attacks.base import raw_gradient
from lightning_paf.functional.geometry import geometry_of, per_example
from lightning_paf.speed.search_model import SearchModel
from lightning_paf.types import Forward

STARTS, STEPS, SMOOTHED_STEPS, DIVERSIFIED_STEPS, CLASSES = 3, 80, 50, 10, 10


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


class SoftenedPGD(SmoothedPGD):
    """PGD along gradients of a copy whose ReLUs are Softplus, then along exact ones.

    Args:
        eps: Largest perturbation.
        net: The attacked network, an `nn.Sequential`.
        sharpness: `beta` of Softplus; infinity is ReLU.
    """

    def __init__(self, eps: float, net: nn.Sequential, sharpness: float) -> None:
        super().__init__(eps)
        layers = (nn.Softplus(sharpness) if isinstance(layer, nn.ReLU) else layer for layer in net)
        self.softened = SearchModel(nn.Sequential(*layers).eval())

    def _gradient(self, forward: Forward, x: Tensor, y: Tensor, lanes: Any, *, smoothed: bool) -> tuple[Tensor, Tensor]:
        logits, _, gradient = raw_gradient(self.softened if smoothed else forward, x, y, lanes.lead)
        return logits, gradient


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
    "exact gradients": lambda net, eps, found: SmoothedPGD(eps, widths=[1e-6] * 3),
    "width 1": lambda net, eps, found: SmoothedPGD(eps, widths=[1.0] * 3),
    "width 2": lambda net, eps, found: SmoothedPGD(eps, widths=[2.0] * 3),
    "width 4": lambda net, eps, found: SmoothedPGD(eps, widths=[4.0] * 3),
    "widths 1, 2, 4 (default)": lambda net, eps, found: SmoothedPGD(eps),
    "20 smoothed steps of 80": lambda net, eps, found: SmoothedPGD(eps, smoothed_steps=20),
    "70 smoothed steps of 80": lambda net, eps, found: SmoothedPGD(eps, smoothed_steps=70),
    "APGD-T": lambda net, eps, found: NoisyAPGD(eps, 0.0),
    "APGD-T, width 2": lambda net, eps, found: NoisyAPGD(eps, 2.0),
    "Softplus, beta 5": lambda net, eps, found: SoftenedPGD(eps, net, 5.0),
    "Softplus, beta 20": lambda net, eps, found: SoftenedPGD(eps, net, 20.0),
    "starts from other images": lambda net, eps, found: TransferredStarts(eps, found),
    "output-diversified starts": lambda net, eps, found: DiversifiedStarts(eps),
}
