"""One sub-attack of an ensemble, with confirmed results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.geometry import per_example
from lightning_paf.nn.modes import frozen
from lightning_paf.speed.search_model import SearchModel

_BATCH_SIZE = 250  # of the confirmation


def run_sub_attack(attack: Attack, model: SearchModel, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Run one sub-attack in eval mode and float32, with confirmed successes.

    The exact model confirms every success. An attack that does not use `model.exact` can stop at an image that only
    the fast path misclassifies. It is run once more on such examples, with the exact model.

    Args:
        attack: The sub-attack.
        model: The attacked model.
        x: Images (N, C, H, W) float32, which the model classifies correctly. Not modified.
        y: Labels (N,).
        seed: Seed of the attack; the global generators are restored.

    Returns:
        Images (N, C, H, W), those of `x` where the model is not fooled; whether it is fooled, (N,) bool.
    """
    with seeded(seed, x.device), torch.autocast(x.device.type, enabled=False):
        x_adv = attack(model, x, y)
        fooled = _fooled(attack, model, model.exact, x, x_adv, y)
        unconfirmed = ~fooled & _fooled(attack, model, model, x, torch.where(per_example(fooled, x), x, x_adv), y)
        if bool(unconfirmed.any()):
            again = attack(_Exact(model), x[unconfirmed], y[unconfirmed])
            x_adv[unconfirmed] = again
            fooled[unconfirmed] = _fooled(attack, model, model.exact, x[unconfirmed], again, y[unconfirmed])
    return torch.where(per_example(fooled, x), x_adv, x), fooled


@torch.no_grad()
def _fooled(
    attack: Attack, model: nn.Module, logits_of: Callable[[Tensor], Tensor], x: Tensor, x_adv: Tensor, y: Tensor
) -> Tensor:
    """Where images were changed and are successes of the attack, (N,) bool."""
    fooled = (x_adv != x).flatten(1).any(dim=1)
    with frozen(model):
        for rows in torch.split(fooled.nonzero().squeeze(1), _BATCH_SIZE):
            if len(rows):
                fooled[rows] = attack.succeeded(logits_of(x_adv[rows]), y[rows])
    return fooled


class _Exact(nn.Module):
    """The exact model as a module."""

    def __init__(self, model: SearchModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.exact(x)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of `device`; restore them on exit."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for used in devices:
            torch.cuda.default_generators[used.index].manual_seed(seed)
        yield
