"""Attacks made of attacks."""

from typing import Any

from torch import Tensor

from lightning_paf.attacks.base import Attack, Best, loss_at
from lightning_paf.functional.losses import cross_entropy, margin
from lightning_paf.types import Forward, PerExampleLoss


class WorstOf(Attack):
    """Runs several attacks and keeps for each example the image that is worst for the model.

    Worst is what has the largest `loss`. The default, the margin, prefers every misclassified image to every correctly
    classified one. Each attack still climbs its own loss; but a loss given in the call is what all of them climb and
    what the comparison uses.

    Args:
        attacks: At least one; they must agree in norm, mode and bounds.
        loss: What to compare by: `(output, target) -> (N,)`.

    Raises:
        ValueError: No attack, or attacks that do not agree.
    """

    def __init__(self, attacks: list[Attack], *, loss: PerExampleLoss = margin) -> None:
        if not attacks:
            raise ValueError("WorstOf got no attack. List at least one.")
        first = max(attacks, key=lambda attack: attack.radius)
        for name in ("norm", "mode", "bounds"):
            values = [getattr(attack, name) for attack in attacks]
            if any(value != values[0] for value in values):
                raise ValueError(f"The attacks of WorstOf must agree in {name}, but have {values}. Give all the same.")
        fold = all(attack.fold for attack in attacks)
        super().__init__(first.eps, norm=first.norm, mode=first.mode, bounds=first.bounds, loss=loss, fold=fold)
        self.attacks = attacks
        self.fixed_loss = any(attack.fixed_loss for attack in attacks)

    @property
    def radius(self) -> float:
        """The largest of the attacks."""
        return max(attack.radius for attack in self.attacks)

    def stages(self) -> tuple[Attack, ...]:
        """Those of its attacks: where only misclassification counts, the worst of several is what any of them finds."""
        return tuple(stage for attack in self.attacks for stage in attack.stages())

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"attacks": [attack.describe() for attack in self.attacks]}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run all, compare."""
        worst = Best(x)
        for attack in self.attacks:
            climbed = (attack.loss or cross_entropy) if loss is self.loss else loss
            x_adv = attack.perturb(forward, x, y, climbed).detach()
            worst.update(x_adv, loss_at(forward, x_adv, y, loss))
        return worst.x


class Restarts(WorstOf):
    """Repeats an attack with a random start and keeps for each example the image that is worst for the model.

    Args:
        attack: What to repeat.
        n: How often.
        loss: What to compare by, see `WorstOf`.

    Raises:
        ValueError: `n` below 1.
    """

    def __init__(self, attack: Attack, n: int = 5, *, loss: PerExampleLoss = margin) -> None:
        if n < 1:
            raise ValueError(f"n={n} restarts make no attack. Give at least 1.")
        super().__init__([attack] * n, loss=loss)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"attacks": [self.attacks[0].describe()], "restarts": len(self.attacks)}
