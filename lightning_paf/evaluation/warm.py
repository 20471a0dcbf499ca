"""Repeated evaluation from the adversarial images of the previous one."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import APGD, Attack
from lightning_paf.attacks.probe import PROBES, Flags, gradient_flag, probe, warn_of
from lightning_paf.evaluation.evaluate import Stop, sub_attack_seed
from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.evaluation.samples import Samples
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import frozen
from lightning_paf.speed.search_model import SearchModel
from lightning_paf.speed.search_precision import SearchPrecision, resolved


@dataclass(frozen=True)
class WarmResult:
    """Result of one warm check.

    Attributes:
        ids: Evaluated samples, (n,) int64, in the order of their evaluation.
        outcomes: `Outcome` of each, (n,) uint8.
        replayed: Number of samples fooled by the images of the previous check.
        passes: Images passed through the network, forward or backward.
        cold: Whether there was no previous check.
        flags: Signs of an unreliable result; see `probe`.
    """

    ids: NDArray[np.int64]
    outcomes: NDArray[np.uint8]
    replayed: int
    passes: int
    cold: bool
    flags: Flags

    @property
    def robust(self) -> int:
        """Number of robust samples."""
        return int(np.count_nonzero(self.outcomes == Outcome.ROBUST))


class WarmCheck:
    """A cheap upper bound of AutoAttack accuracy for a slowly changing network.

    The first check is cold: the sub-attacks with all their steps. Every later one replays the images of the previous
    check with one forward pass, and attacks only the samples that are still robust, with few steps from the image with
    the smallest margin. The random order of the samples is the same in every check.

    Args:
        attack: An attack whose sub-attacks are all APGD, the only attack with a given starting point.
        steps: Steps of every sub-attack in a warm check.
        block_size: Samples between two calls of the stop rule.
        seed: Seed of the order and of the attack.
        precision: Precision of the search.

    Raises:
        ValueError: A sub-attack is not APGD or has a target, or `steps` is below 1.
    """

    def __init__(
        self,
        attack: Attack,
        *,
        steps: int = 20,
        block_size: int = 128,
        seed: int = 0,
        precision: SearchPrecision = "fp32",
    ) -> None:
        if not all(isinstance(part, APGD) for part in attack.sub_attacks()):
            labels = ", ".join(part.label for part in attack.sub_attacks())
            raise ValueError(
                f"The sub-attacks of a warm check must support a given starting point, as only APGD does, got "
                f"{labels}. Pass AutoAttack with version=custom and attacks=[apgd-ce, apgd-t]."
            )
        if attack.target is not None:
            raise ValueError(f"target must be null for a warm check, got {attack.target}. Pass target=null.")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}. The default is 20.")
        self.attack = attack
        self.steps = steps
        self.block_size = block_size
        self.seed = seed
        self.precision = precision
        self.nearest: dict[int, Tensor] = {}

    def run(self, model: nn.Module, samples: Samples, stop: Stop | None = None) -> WarmResult:
        """Check the model with its current weights.

        Args:
            model: Images (N, C, H, W) in [0, 1] to logits.
            samples: Samples, which should include most of the previous check.
            stop: See `Stop`.
        """
        x, y = samples.fetch(samples.ids[:PROBES])
        found, precision = probe(model, x, y), resolved(self.precision, x.device)
        search, cold = self.attack.search_model(found.model, precision), not self.nearest
        attacks, order = self._attacks(found.classes, cold), np.random.default_rng(self.seed).permutation(samples.ids)
        parts: list[NDArray[np.uint8]] = []
        replayed = robust = 0
        for number, first in enumerate(range(0, len(order), self.block_size)):
            ids = order[first : first + self.block_size]
            outcomes, hits = self._block(search, attacks, ids, *samples.checked(ids, found.classes), number, cold)
            parts.append(outcomes)
            replayed += hits
            robust += int(np.count_nonzero(outcomes == Outcome.ROBUST))
            if stop is not None and stop(robust, first + len(ids), len(order)):
                break
        outcomes = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        flags = {**found.flags, **gradient_flag(search.not_finite, search.passes.backward)}
        warn_of(flags)
        passes = search.passes.forward + search.passes.backward + search.passes.exact
        self.nearest = {i: self.nearest[i] for i in samples.ids.tolist() if i in self.nearest}
        return WarmResult(order[: len(outcomes)], outcomes, replayed, passes, cold, flags)

    def state_dict(self) -> dict[str, Any]:
        """Return the perturbations of the last check, for a checkpoint."""
        ids = sorted(self.nearest)
        return {"ids": ids, "perturbations": [self.nearest[i] for i in ids]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the output of `state_dict`."""
        self.nearest = dict(zip(state["ids"], state["perturbations"], strict=True))

    def _attacks(self, classes: int, cold: bool) -> list[APGD]:
        """Return the sub-attacks for a number of classes, shortened unless `cold`."""
        parts = [part for part in self.attack.for_classes(classes).sub_attacks() if isinstance(part, APGD)]
        return parts if cold else [_shortened(part, self.steps) for part in parts]

    def _block(
        self,
        search: SearchModel,
        attacks: Sequence[APGD],
        ids: NDArray[np.int64],
        x: Tensor,
        y: Tensor,
        number: int,
        cold: bool,
    ) -> tuple[NDArray[np.uint8], int]:
        """Return outcomes (n,), and the number of samples that the replay fooled."""
        robust = self._correct(search, x, y)
        outcomes = torch.where(robust, Outcome.ROBUST, Outcome.MISCLASSIFIED)
        nearest = self._starts(ids, x)
        robust &= self._correct(search, nearest, y)
        replayed = int((outcomes == Outcome.ROBUST).sum() - robust.sum())
        for index, attack in enumerate(attacks):
            rows = robust.nonzero().flatten()
            seed = sub_attack_seed(self.seed, number, index, attack.label)
            nearest[rows], fooled = _searched(attack, search, x[rows], y[rows], None if cold else nearest[rows], seed)
            robust[rows[fooled]] = False
        outcomes[(outcomes == Outcome.ROBUST) & ~robust] = Outcome.FOOLED
        self.nearest.update(zip(ids.tolist(), (nearest - x).cpu().half(), strict=True))
        return outcomes.cpu().numpy().astype(np.uint8), replayed

    def _starts(self, ids: NDArray[np.int64], x: Tensor) -> Tensor:
        """Return each sample's image of the last check, or the sample itself."""
        attack, none = self.attack, torch.zeros_like(x[0])
        last = torch.stack([self.nearest.get(int(i), none).to(x) for i in ids])
        return geometry_of(attack.norm).move(x, last, float(attack.eps), attack.bounds)

    @torch.no_grad()
    def _correct(self, search: SearchModel, x: Tensor, y: Tensor) -> Tensor:
        with frozen(search):
            return ~misclassified(torch.cat([search.exact(part) for part in torch.split(x, 256)]), y)


def joined(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Combine the `state_dict` of several `WarmCheck`, each with its own samples."""
    nearest = {i: kept for state in states for i, kept in zip(state["ids"], state["perturbations"], strict=True)}
    ids = sorted(nearest)
    return {"ids": ids, "perturbations": [nearest[i] for i in ids]}


def _searched(
    attack: APGD, search: SearchModel, x: Tensor, y: Tensor, start: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Attack images (N, C, H, W) with seeded random numbers.

    Returns:
        The images with the smallest margins, and whether each fools the network, (N,).
    """
    if len(x) == 0:
        return x, torch.zeros(0, dtype=torch.bool, device=x.device)
    nearest = x.clone()
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []), torch.enable_grad(), frozen(search):
        torch.manual_seed(seed)
        x_adv = attack.search(search, x, y, start, nearest)
    with torch.no_grad(), frozen(search):
        fooled = misclassified(search.exact(x_adv), y)
    nearest[fooled] = x_adv[fooled]
    return nearest, fooled


def _shortened(attack: APGD, steps: int) -> APGD:
    shorter = copy.copy(attack)
    shorter.steps = min(steps, attack.steps)
    return shorter
