"""The Jacobian-based saliency map attack."""

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.catalogue.jacobian import logit_gradients
from lightning_paf.attacks.target import Target
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified
from lightning_paf.types import Forward, PerExampleLoss


class JSMA(Attack):
    """Jacobian-based saliency map attack (Papernot et al. 2016).

    It sets the most salient pairs of entries to the end of their range.

    An entry is one channel of one pixel. A pair must raise the logit of the target and lower the sum of the others; the
    pair with the largest product of both effects is set. The search ends at a wrong prediction, without such a pair, or
    at the end of the budget. The paper's attack is targeted; here the target is the most likely class other than the
    label.

    The budget counts entries (l0). Since no entry moves by more than 1, it bounds the l1 norm, in which `norm`, `eps`
    and `radius` are given.

    Args:
        entries: Largest number of entries to change; rounded down to pairs.
        increase: Whether entries become 1 (white), or 0.
        target: See `Attack`.

    Raises:
        ValueError: Fewer than 2 entries.
    """

    fixed_loss = True
    settings = ("entries", "increase")

    def __init__(self, entries: int = 20, *, increase: bool = True, target: Target = None) -> None:
        super().__init__(2, norm="l1", target=target)
        self.eps = self.entries = entries  # not checked: a number of entries can exceed every radius
        self.increase = increase
        self.require(entries=2)

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
            pairs, salient = self._pairs(gradients, free[rows])
            going = ~misclassified(logits, y[rows]) & salient
            rows, pairs = rows[going], pairs[going]
            if len(rows) == 0:
                break
            x_adv.view(len(x), -1)[rows[:, None], pairs] = end
            free[rows[:, None], pairs] = False
        return x_adv

    def _gradients(self, forward: Forward, x: Tensor, y: Tensor, target: Tensor, choose: bool) -> tuple[Tensor, Tensor]:
        """Logits (n, K); gradients (n, 2, D) of the target logit and of the others' sum."""
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
        """Most salient pair of entries (n, 2) per image; mask of salient pairs (n,)."""
        sign = 1.0 if self.increase else -1.0
        pairs, scores = [], []
        for gradient, movable in zip(sign * gradients, free, strict=True):  # one image at a time: D x D products
            ours, others = (part[:, None] + part[None, :] for part in gradient)
            score = torch.where((ours > 0) & (others < 0), -ours * others, 0.0) * (movable[:, None] & movable[None, :])
            score.fill_diagonal_(0)
            best = score.argmax()
            pairs.append(torch.stack((best // len(movable), best % len(movable))))
            scores.append(score.max())
        return torch.stack(pairs), torch.stack(scores) > 0
