"""An attack whose results can be replayed."""

from typing import Any

from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.types import Forward, PerExampleLoss


class Recorded(Attack):
    """Record the images that another attack finds, and replay them after `rewind`.

    For methods that evaluate one loss twice at the same adversarial images.

    Args:
        attack: The attack to record.
    """

    def __init__(self, attack: Attack) -> None:
        threat = {name: getattr(attack, name) for name in ("norm", "mode", "bounds", "loss", "fold", "target")}
        super().__init__(**threat)
        self.eps = attack.eps  # a schedule may have set it to 0, which the constructor rejects
        self.attack, self.fixed_loss, self._seen_pixels = attack, attack.fixed_loss, attack._seen_pixels
        self._found: list[Tensor] = []
        self._next: int | None = None

    @property
    def radius(self) -> float:
        """Radius of the recorded attack."""
        return self.attack.radius

    @property
    def aims_by_loss(self) -> bool:
        """That of the recorded attack."""
        return self.attack.aims_by_loss

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"attacks": [self.attack.describe()]}

    def rewind(self) -> None:
        """Start replaying at the first result."""
        self._next = 0

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Record the result of the attack, or replay the next one.

        Raises:
            RuntimeError: The replay is longer than the record.
        """
        self.attack._seen_pixels = True  # checked by the call of this attack
        if self._next is None:
            self._found.append(self.attack.perturb(forward, x, y, loss).detach())
            return self._found[-1]
        if self._next >= len(self._found):
            raise RuntimeError(
                f"A replay must be called at most {len(self._found)} times (the recorded calls), got one more. Record "
                "again with the longer attack."
            )
        self._next += 1
        return self._found[self._next - 1]
