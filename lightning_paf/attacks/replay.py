"""An attack whose results can be used again."""

from typing import Any

from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.types import Forward, PerExampleLoss


class Recorded(Attack):
    """Keeps the images that another attack finds, and after `rewind` returns them in the same order.

    For methods that evaluate one loss twice at the same adversarial images, whatever the loss attacks and how often.

    Args:
        attack: What finds them.
    """

    def __init__(self, attack: Attack) -> None:
        # Taken over and not checked again: a schedule may have shrunk the radius to zero.
        self.eps, self.norm, self.mode = attack.eps, attack.norm, attack.mode
        self.bounds, self.loss, self.fold = attack.bounds, attack.loss, attack.fold
        self.attack = attack
        self.around = attack.around  # somebody may watch it
        self.fixed_loss = attack.fixed_loss
        self._seen_pixels = attack._seen_pixels
        self._found: list[Tensor] = []
        self._next: int | None = None

    @property
    def radius(self) -> float:
        """That of the attack."""
        return self.attack.radius

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"attacks": [self.attack.describe()]}

    def rewind(self) -> None:
        """From now on return what was found, the first first."""
        self._next = 0

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Find images and keep them, or return those that were found.

        Raises:
            RuntimeError: More is asked for than was found.
        """
        self.attack._seen_pixels = True  # looked at by the call around this; once is enough
        if self._next is None:
            self._found.append(self.attack.perturb(forward, x, y, loss).detach())
            return self._found[-1]
        if self._next >= len(self._found):
            raise RuntimeError(f"The attack was called {len(self._found)} times, and now once more. Record it again.")
        self._next += 1
        return self._found[self._next - 1]
