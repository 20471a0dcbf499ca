"""One attack of several that judge together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import frozen
from lightning_paf.speed.search_model import SearchModel

_AT_ONCE = 250  # images in a forward pass that only looks


def run_stage(stage: Attack, model: SearchModel, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Attack examples with one stage, in eval mode and single precision; the untouched model confirms every success.

    A stage that knows nothing of `model.exact` searches on the fast path alone and may stop at an image that only this
    path misclassifies. Such examples are searched once more, on the untouched model.

    Args:
        stage: The attack.
        model: What it attacks.
        x: Images (N, C, H, W) float32, which the model classifies correctly. Not modified.
        y: Labels (N,).
        seed: Of the stage's random numbers; the global generators are left as found.

    Returns:
        Images (N, C, H, W), those of `x` where the model is not fooled; whether it is, (N,) bool.
    """
    with _seeded(seed, x.device), torch.autocast(x.device.type, enabled=False):
        x_adv = stage(model, x, y)
        fooled = _misled(model, model.exact, x, x_adv, y)
        doubtful = ~fooled & _misled(model, model, x, torch.where(_wide(fooled), x, x_adv), y)
        if bool(doubtful.any()):
            again = stage(_Exact(model), x[doubtful], y[doubtful])
            x_adv[doubtful] = again
            fooled[doubtful] = _misled(model, model.exact, x[doubtful], again, y[doubtful])
    return torch.where(_wide(fooled), x_adv, x), fooled


@torch.no_grad()
def _misled(model: nn.Module, logits_of: Callable[[Tensor], Tensor], x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """Where images were changed and are misclassified, (N,) bool."""
    misled = (x_adv != x).flatten(1).any(dim=1)
    with frozen(model):
        for rows in torch.split(misled.nonzero().squeeze(1), _AT_ONCE):
            if len(rows):
                logits = logits_of(x_adv[rows])
                misled[rows] = misclassified(logits, y[rows])
    return misled


class _Exact(nn.Module):
    """The untouched model, counted."""

    def __init__(self, model: SearchModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.exact(x)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A fixed seed inside, the generators as they were outside; those of other devices are not touched."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for used in devices:
            torch.cuda.default_generators[used.index].manual_seed(seed)
        yield


def _wide(flags: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to go with images."""
    return flags.view(-1, 1, 1, 1)
