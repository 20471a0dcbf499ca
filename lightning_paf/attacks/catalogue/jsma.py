"""The Jacobian-based saliency map attack."""

from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.catalogue.jacobian import logit_gradients
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified
from lightning_paf.types import Forward, PerExampleLoss


class JSMA(Attack):
    """Sets pairs of entries to the end of their range, those that raise the target most (Papernot et al. 2016).

    An entry is one channel of one pixel. Of all pairs of entries that raise the target's logit and lower the sum of the
    others, the one with the largest product of both effects is set, until the prediction is wrong, no pair is left, or
    the budget is used up. The paper's attack is targeted; here the target is the likeliest class besides the label.

    The budget counts entries (l0). Since no entry moves by more than 1, it bounds the l1 norm, which is what `norm`,
    `eps` and `radius` say.

    Args:
        entries: How many entries may change; rounded down to pairs.
        increase: Whether entries become 1 (white), or 0.

    Raises:
        ValueError: Fewer than 2 entries.
    """

    fixed_loss = True

    def __init__(self, entries: int = 20, *, increase: bool = True) -> None:
        if entries < 2:
            raise ValueError(f"entries={entries} is less than one pair. Give at least 2.")
        super().__init__(2, norm="l1")
        self.eps = entries  # a number of entries is not to be taken for grey levels, however large
        self.entries = entries
        self.increase = increase

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        own = {"entries": self.entries, "increase": self.increase}
        return {key: value for key, value in super().describe().items() if key != "loss"} | own

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """The images after the last pair."""
        del loss
        y, end, x_adv = hard_labels(y), float(self.increase), x.clone(memory_format=torch.contiguous_format)
        free = x.flatten(1) != end
        rows, target = torch.arange(len(x), device=x.device), torch.zeros_like(y)
        for step in range(self.entries // 2):
            logits, gradients = self._gradients(forward, x_adv[rows], y[rows], target[rows], choose=step == 0)
            if step == 0:
                target[rows] = logits.scatter(1, y[rows, None], -torch.inf).argmax(dim=1)
            pairs, admissible = self._pairs(gradients, free[rows])
            going = ~misclassified(logits, y[rows]) & admissible
            rows, pairs = rows[going], pairs[going]
            if len(rows) == 0:
                break
            x_adv.view(len(x), -1)[rows[:, None], pairs] = end
            free[rows[:, None], pairs] = False
        return x_adv

    def _gradients(self, forward: Forward, x: Tensor, y: Tensor, target: Tensor, choose: bool) -> tuple[Tensor, Tensor]:
        """Logits (n, K), and the gradients of the target's and of the sum of the others (n, 2, D)."""
        if choose:
            with torch.no_grad():
                target = forward(x).scatter(1, y[:, None], -torch.inf).argmax(dim=1)

        def both(points: Tensor) -> Tensor:
            logits: Tensor = forward(points)
            own = logits.gather(1, target[:, None])
            return torch.cat((own, logits.sum(1, keepdim=True) - own, logits), dim=1)

        values, gradients = logit_gradients(both, x, torch.tensor([[0, 1]], device=x.device).expand(len(x), -1))
        return values[:, 2:], gradients.flatten(2)

    def _pairs(self, gradients: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """The best pair of entries (n, 2) for each image, and whether it does what it should (n,)."""
        sign = 1.0 if self.increase else -1.0
        pairs, scores = [], []
        for gradient, movable in zip(sign * gradients, free, strict=True):  # one at a time: D x D products
            ours, others = (part[:, None] + part[None, :] for part in gradient)
            score = torch.where((ours > 0) & (others < 0), -ours * others, 0.0) * (movable[:, None] & movable[None, :])
            score.fill_diagonal_(0)
            best = score.argmax()
            pairs.append(torch.stack((best // len(movable), best % len(movable))))
            scores.append(score.max())
        return torch.stack(pairs), torch.stack(scores) > 0
