"""Do all random starts of an attack end at the same loss? (Madry et al., 2018, section 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_paf.attacks import PGD
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.modes import frozen
from lightning_paf.types import PerExampleLoss


@dataclass(frozen=True, eq=False)
class Concentration:
    """Final losses of an attack from many random starts.

    Attributes:
        losses: (starts, N), cross-entropy at the end of each start.
        clean: (N,), cross-entropy of the images themselves.
        distance: (N,), mean distance of two results of the same image, in the norm of the attack and units of eps:
            maximisers may be far apart although their losses agree.
    """

    losses: Tensor
    clean: Tensor
    distance: Tensor

    @property
    def spread(self) -> Tensor:
        """Standard deviation over the starts as a share of their mean, for each image (N,)."""
        return self.losses.std(0) / self.losses.mean(0).clamp_min(torch.finfo(self.losses.dtype).tiny)

    @property
    def outlier(self) -> Tensor:
        """How many standard deviations the best start lies above the mean, for each image (N,); 0 where all agree."""
        deviation = self.losses.std(0)
        above = self.losses.amax(0) - self.losses.mean(0)
        return torch.where(deviation > 0, above / deviation.clamp_min(torch.finfo(deviation.dtype).tiny), 0.0)


def concentration(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: PGD,
    starts: int = 100,
    progress: Callable[[str], object] = lambda _: None,
) -> Concentration:
    """Attack the same images again and again.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits.
        x: Images (N, C, H, W).
        y: Labels (N,).
        attack: With a random start.
        starts: How often, at least 2.
        progress: Told how far it is.

    Raises:
        ValueError: An attack without a random start, or fewer than two starts.
    """
    if attack.start == "none" or starts < 2:
        raise ValueError(
            f"A distribution over starts needs random ones, at least 2 of them, but start={attack.start} and "
            f"starts={starts}. Use start=uniform and --starts 100."
        )
    losses, distance, before = [], torch.zeros(len(x), device=x.device), None
    for number in range(starts):
        progress(f"start {number + 1} of {starts}")
        x_adv = attack(model, x, y)
        losses.append(_losses(model, x_adv, y, cross_entropy))
        if before is not None:  # of consecutive starts, which are as independent as any two
            distance += geometry_of(attack.norm).size(x_adv - before) / (attack.radius * (starts - 1))
        before = x_adv
    return Concentration(torch.stack(losses), _losses(model, x, y, cross_entropy), distance)


def spread_text(share: float) -> str:
    """A share in % with two significant digits, as in `0.0031 %`: losses that agree differ far behind the point."""
    percent = 100 * share
    return f"{percent:.2g} %" if percent < 99.5 else f"{percent:.0f} %"


def _losses(model: nn.Module, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
    with torch.no_grad(), frozen(model):
        return loss(model(x), y).float()
