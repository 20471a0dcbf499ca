"""Robust accuracy again and again while a network learns, from the adversarial images of the last time."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import Attack
from lightning_paf.evaluation.evaluate import Stop, stage_seed
from lightning_paf.evaluation.result import Verdict
from lightning_paf.evaluation.samples import Samples
from lightning_paf.functional.geometry import Bounds, geometry_of
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import frozen
from lightning_paf.speed.search_model import Precision, SearchModel
from lightning_paf.types import Forward, Norm, Radius


@dataclass(frozen=True)
class WarmResult:
    """One check.

    Attributes:
        ids: Samples judged, (n,) int64, in the order of judging.
        verdicts: A `Verdict` for each, (n,) uint8.
        replayed: How many the images of the last check still fooled.
        passes: Images that went through the network, forward or backward.
        cold: Whether there was nothing to begin from.
    """

    ids: NDArray[np.int64]
    verdicts: NDArray[np.uint8]
    replayed: int
    passes: int
    cold: bool

    @property
    def robust(self) -> int:
        """Samples that withstood the check."""
        return int(np.count_nonzero(self.verdicts == Verdict.ROBUST))


@runtime_checkable
class BeginsAnywhere(Protocol):
    """What a warm check asks of a stage: that it begins at given images and tells which came nearest. `APGD` does."""

    steps: int
    norm: Norm
    eps: Radius
    bounds: Bounds

    @property
    def label(self) -> str:
        """A short name."""

    def search(
        self, forward: Forward, x: Tensor, y: Tensor, start: Tensor | None = None, nearest: Tensor | None = None
    ) -> Tensor:
        """See `APGD.search`."""


class WarmCheck:
    """An upper bound of AutoAttack accuracy at a fraction of its price, for a network that changes little between two.

    The first check is cold: the attack's stages with all their steps. Every later one replays the last check's images
    first, with one forward pass, and searches only for those that survive it, with few steps from the image that came
    nearest to fooling the last network. Samples come in one random order, the same in every check, so that a check may
    stop as soon as its interval is narrow enough.

    Args:
        attack: All its stages must begin anywhere, as APGD does.
        steps: Steps of every stage in a warm check.
        block_size: Samples between two questions to the stop rule.
        seed: Of the order and of the attack.
        precision: Of the search.

    Raises:
        ValueError: A stage that cannot begin at a given image; no step.
    """

    def __init__(
        self, attack: Attack, *, steps: int = 20, block_size: int = 128, seed: int = 0, precision: Precision = "fp32"
    ) -> None:
        self.cold_stages = [stage for stage in attack.sub_attacks() if isinstance(stage, BeginsAnywhere)]
        if len(self.cold_stages) < len(attack.sub_attacks()):
            labels = ", ".join(stage.label for stage in attack.sub_attacks())
            raise ValueError(
                f"A warm check begins at images of the last check, which only APGD can, but the attack runs {labels}. "
                "Use AutoAttack with version=custom and attacks=[apgd-ce, apgd-t]."
            )
        if steps < 1:
            raise ValueError(f"A warm check needs at least one step, but steps={steps}. Usual is 20.")
        self.attack = attack
        self.warm_stages = [_shortened(stage, steps) for stage in self.cold_stages]
        self.block_size = block_size
        self.seed = seed
        self.precision = precision
        self.nearest: dict[int, Tensor] = {}

    def run(self, model: nn.Module, samples: Samples, stop: Stop | None = None) -> WarmResult:
        """Check the model as it is now.

        Args:
            model: Images (N, C, H, W) in [0, 1] to logits.
            samples: The same, or nearly, as in the last check.
            stop: `(robust, judged, total)` to whether enough are judged.
        """
        search, cold = self.attack.search_model(model, self.precision), not self.nearest
        order = np.random.default_rng(self.seed).permutation(samples.ids)
        judged: list[NDArray[np.uint8]] = []
        replayed = robust = 0
        for number, first in enumerate(range(0, len(order), self.block_size)):
            ids = order[first : first + self.block_size]
            verdicts, hits = self._block(search, ids, *samples.fetch(ids), number, cold)
            judged.append(verdicts)
            replayed += hits
            robust += int(np.count_nonzero(verdicts == Verdict.ROBUST))
            if stop is not None and stop(robust, first + len(ids), len(order)):
                break
        verdicts = np.concatenate(judged) if judged else np.empty(0, np.uint8)
        search.warn_of_gradients()
        passes = search.passes
        total = passes.forward + passes.backward + passes.exact
        ours = set(samples.ids.tolist())
        self.nearest = {i: nearest for i, nearest in self.nearest.items() if i in ours}
        return WarmResult(order[: len(verdicts)], verdicts, replayed, total, cold)

    def state_dict(self) -> dict[str, Any]:
        """The perturbations of the last check, to continue from after an interruption."""
        ids = sorted(self.nearest)
        return {"ids": ids, "perturbations": [self.nearest[i] for i in ids]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.nearest = dict(zip(state["ids"], state["perturbations"], strict=True))

    def _block(
        self, search: SearchModel, ids: NDArray[np.int64], x: Tensor, y: Tensor, number: int, cold: bool
    ) -> tuple[NDArray[np.uint8], int]:
        """Verdicts (n,), and how many the replay broke."""
        standing = self._right(search, x, y)
        verdicts = torch.where(standing, Verdict.ROBUST, Verdict.CLEAN_ERROR)
        nearest = self._starts(ids, x)
        standing &= self._right(search, nearest, y)
        replayed = int((verdicts == Verdict.ROBUST).sum() - standing.sum())
        for place, stage in enumerate(self.cold_stages if cold else self.warm_stages):
            rows = standing.nonzero().flatten()
            seed = stage_seed(self.seed, number, place, stage.label)
            nearest[rows], fooled = _searched(stage, search, x[rows], y[rows], None if cold else nearest[rows], seed)
            standing[rows[fooled]] = False
        verdicts[(verdicts == Verdict.ROBUST) & ~standing] = Verdict.BROKEN
        self.nearest.update(zip(ids.tolist(), (nearest - x).cpu().half(), strict=True))
        return verdicts.cpu().numpy().astype(np.uint8), replayed

    def _starts(self, ids: NDArray[np.int64], x: Tensor) -> Tensor:
        """The last check's image of each sample; the sample itself where there is none."""
        attack, none = self.cold_stages[0], torch.zeros_like(x[0])
        last = torch.stack([self.nearest.get(int(i), none).to(x) for i in ids])
        return geometry_of(attack.norm).move(x, last, float(attack.eps), attack.bounds)

    @torch.no_grad()
    def _right(self, search: SearchModel, x: Tensor, y: Tensor) -> Tensor:
        with frozen(search):
            return ~misclassified(torch.cat([search.exact(part) for part in torch.split(x, 256)]), y)


def joined(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several `WarmCheck` remember, each of its own samples, as the memory of one."""
    nearest = {i: kept for state in states for i, kept in zip(state["ids"], state["perturbations"], strict=True)}
    ids = sorted(nearest)
    return {"ids": ids, "perturbations": [nearest[i] for i in ids]}


def _searched(
    stage: BeginsAnywhere, search: SearchModel, x: Tensor, y: Tensor, start: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """The image that came nearest to fooling the network, or did; and which did."""
    if len(x) == 0:
        return x, torch.zeros(0, dtype=torch.bool, device=x.device)
    nearest = x.clone()
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []), torch.enable_grad(), frozen(search):
        torch.manual_seed(seed)
        x_adv = stage.search(search, x, y, start, nearest)
    with torch.no_grad(), frozen(search):
        fooled = misclassified(search.exact(x_adv), y)
    nearest[fooled] = x_adv[fooled]
    return nearest, fooled


def _shortened(stage: BeginsAnywhere, steps: int) -> BeginsAnywhere:
    shorter = copy.copy(stage)
    shorter.steps = min(steps, stage.steps)
    return shorter
