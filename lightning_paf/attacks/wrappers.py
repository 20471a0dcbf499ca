"""Combinations of attacks."""

import copy
from typing import Any

from torch import Tensor

from lightning_paf.attacks.base import Attack, Best, loss_at
from lightning_paf.functional.losses import cross_entropy, margin
from lightning_paf.types import Forward, PerExampleLoss


class WorstOf(Attack):
    """Run several attacks and keep the image with the largest `loss` of each example.

    The default loss, the margin, ranks every misclassified image above every correctly classified one. Each attack
    increases its own loss; a loss passed in the call replaces these and that of the comparison.

    Args:
        attacks: At least one; they must agree in norm, mode, bounds and target.
        loss: Loss of the comparison, `(output, target) -> (N,)`.

    Raises:
        ValueError: No attack, or attacks that do not agree.
    """

    def __init__(self, attacks: list[Attack], *, loss: PerExampleLoss = margin) -> None:
        if not attacks:
            raise ValueError("attacks must hold at least one attack, got none. Pass at least one.")
        first = max(attacks, key=lambda attack: attack.radius)
        for name in ("norm", "mode", "bounds", "target"):
            values = [getattr(attack, name) for attack in attacks]
            if any(value != values[0] for value in values):
                raise ValueError(f"The attacks of WorstOf must agree in {name}, got {values}. Pass one value to all.")
        fold = all(attack.fold for attack in attacks)
        threat: dict[str, Any] = {name: getattr(first, name) for name in ("norm", "mode", "bounds", "target")}
        super().__init__(first.eps, loss=loss, fold=fold, **threat)
        self.attacks = attacks
        self.fixed_loss = any(attack.fixed_loss for attack in attacks)

    @property
    def radius(self) -> float:
        """The largest of the attacks."""
        return max(attack.radius for attack in self.attacks)

    @property
    def aims_by_loss(self) -> bool:
        """Whether all attacks do."""
        return all(attack.aims_by_loss for attack in self.attacks)

    def sub_attacks(self) -> tuple[Attack, ...]:
        """Sub-attacks of all attacks: the first success is the result of an evaluation."""
        return tuple(sub_attack for attack in self.attacks for sub_attack in attack.sub_attacks())

    def for_classes(self, classes: int) -> Attack:
        """All attacks on a model with this number of classes."""
        fitted = copy.copy(self)
        fitted.attacks = [attack.for_classes(classes) for attack in self.attacks]
        return fitted

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"attacks": [attack.describe() for attack in self.attacks]}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run all attacks and compare their results."""
        worst = Best(x)
        for attack in self.attacks:
            own_loss = (attack.loss or cross_entropy) if loss is self.loss else loss
            x_adv = attack.perturb(forward, x, y, own_loss).detach()
            worst.update(x_adv, loss_at(forward, x_adv, y, loss))
        return worst.x


class Restarts(WorstOf):
    """Repeat a randomised attack and keep the image with the largest `loss`.

    Args:
        attack: Attack to repeat.
        n: Number of runs.
        loss: Loss of the comparison, see `WorstOf`.

    Raises:
        ValueError: `n` below 1.
    """

    def __init__(self, attack: Attack, n: int = 5, *, loss: PerExampleLoss = margin) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}. Pass n=1 or more.")
        super().__init__([attack] * n, loss=loss)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"attacks": [self.attacks[0].describe()], "restarts": len(self.attacks)}
