"""Attacks on networks with probes (Yan et al., 2021)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.wrappers import WorstOf
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nn.channel_gate import mask_gradients, recorded_probes
from lightning_paf.nn.classifier import Outputs
from lightning_paf.types import Forward, PerExampleLoss

WEIGHTS = (0.0, 0.1, 1.0, 2.0, 10.0, 100.0, math.inf)


def joint_loss(weight: float, loss: PerExampleLoss = cross_entropy) -> Callable[[Outputs, Tensor], Tensor]:
    """Loss of the logits plus `weight` times its mean over the probes.

    Args:
        weight: At least 0; infinity leaves the mean over the probes alone. Without probes, it has no effect.
        loss: Loss of logits, `(logits, target) -> (N,)`.

    Returns:
        Function of `Outputs` and targets, with values (N,).
    """

    def joint(outputs: Outputs, y: Tensor) -> Tensor:
        final = loss(outputs.logits, y)
        if not outputs.aux:
            return final
        probes = torch.stack([loss(logits, y) for logits in outputs.aux]).mean(0)
        return probes if weight == math.inf else final + weight * probes

    return joint


class JointAttack(Attack):
    """An attack on the logits of a network and those of its probes.

    It increases `joint_loss` of the loss of `attack`. Labels are not passed to the gates. On a network without probes
    it is the attack itself.

    Args:
        attack: Attack by gradients without fixed loss, such as PGD.
        weight: Weight of the probes, at least 0; `.inf` for the probes alone.
        mask_grad: Whether the gradient also flows through the importance of the channels, which the network in training
            and all other attacks treat as constant: the adaptive attack.

    Raises:
        ValueError: A negative weight, or an attack with its own losses.
    """

    fixed_loss = True
    settings = ("mask_grad",)

    def __init__(self, attack: Attack, weight: float = 2.0, mask_grad: bool = False) -> None:
        if attack.fixed_loss:
            raise ValueError(
                f"attack must have a loss that can be replaced, got {type(attack).__name__} with its own losses. "
                "Pass PGD."
            )
        names = ("norm", "mode", "bounds", "loss", "fold", "target")
        options: dict[str, Any] = {name: getattr(attack, name) for name in names}
        super().__init__(attack.eps, **options)
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}. Pass weight=2, or inf for the probes alone.")
        self.attack, self.weight, self.mask_grad = attack, weight, mask_grad

    @property
    def radius(self) -> float:
        """That of the attack."""
        return self.attack.radius

    @property
    def aims_by_loss(self) -> bool:
        """Always, since the loss needs the outputs of the probes."""
        return True

    @property
    def label(self) -> str:
        """Name of the attack with the weight, such as `pgd-joint2`."""
        return f"{self.attack.label}-joint{self.weight:g}{'-mask' * self.mask_grad}"

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"weight": str(self.weight), "attacks": [self.attack.describe()]}

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run the attack on the joint loss."""
        assert isinstance(forward, nn.Module)  # `fixed_loss` admits no other
        model = forward
        with torch.no_grad():
            model(x)  # the first pass of a `SearchModel` checks it, by other passes that must not be recorded
        with mask_gradients(model, self.mask_grad), recorded_probes(model) as collected:

            def outputs(images: Tensor) -> Outputs:
                logits = model(images)
                return Outputs(logits, logits, collected())

            return self.attack.perturb(outputs, x, y, joint_loss(self.weight, loss))


class JointGrid(WorstOf):
    """`JointAttack` with each of several weights; the worst result counts.

    Args:
        attack: As in `JointAttack`.
        weights: Weights of the probes; by default 0, 0.1, 1, 2, 10, 100 and infinity.
        mask_grad: As in `JointAttack`.

    Raises:
        ValueError: No weight, or see `JointAttack`.
    """

    fixed_loss = True

    def __init__(self, attack: Attack, weights: Sequence[float] = WEIGHTS, mask_grad: bool = False) -> None:
        super().__init__([JointAttack(attack, weight, mask_grad) for weight in weights])
