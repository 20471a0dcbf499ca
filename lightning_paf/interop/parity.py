"""Is an exported network the same network? Compared by logits, by a second attack, by known adversarial examples."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import Attack
from lightning_paf.evaluation.statistics import mcnemar
from lightning_paf.functional.predictions import misclassified

TOLERANCE = 1e-4
"""Largest difference of logits, over the largest logit where that is above 1; sums in another order give 1e-6."""

SIGNIFICANCE = 0.05
MOST_NAMED = 10


@dataclass(frozen=True)
class Bout:
    """Two networks under the same attack, each attacked on its own, with the same seed and on the same samples.

    Attributes:
        ids: The samples, (n,).
        first: Which of them the first network holds, (n,) bool; a clean error counts as lost.
        second: The same for the second.
        examples: What the two attacks found, (m, C, H, W), and the labels, (m,).
    """

    ids: NDArray[np.int64]
    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    examples: tuple[Tensor, Tensor]

    @property
    def only_first(self) -> list[int]:
        """Samples that only the first network holds."""
        return [int(sample) for sample in self.ids[self.first & ~self.second]]

    @property
    def only_second(self) -> list[int]:
        """Samples that only the second network holds."""
        return [int(sample) for sample in self.ids[~self.first & self.second]]

    @property
    def p_value(self) -> float:
        """How likely so lopsided a dispute is between equals (exact McNemar test)."""
        return mcnemar(len(self.only_first), len(self.only_second))

    @property
    def differs(self) -> bool:
        """Whether the robust accuracies differ beyond chance, at the 5 % level."""
        return self.p_value < SIGNIFICANCE


def fight(
    first: nn.Module, second: nn.Module, attack: Attack, ids: NDArray[np.int64], x: Tensor, y: Tensor, seed: int
) -> Bout:
    """Attack both networks.

    Args:
        first: Images in [0, 1] to logits.
        second: What claims to be the same.
        attack: Needs no gradients.
        ids: Names of the samples, for the report.
        x: Their images (n, C, H, W) in [0, 1].
        y: Their labels (n,).
        seed: Of both attacks.
    """
    holds, found, labels = [], [], []
    for model in (first, second):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            x_adv = attack(model, x, y)
        robust = ~misclassified(_logits(model, x), y) & ~misclassified(_logits(model, x_adv), y)
        holds.append(robust.cpu().numpy())
        found.append(x_adv[~robust])
        labels.append(y[~robust])
    return Bout(ids, holds[0], holds[1], (torch.cat(found), torch.cat(labels)))


@dataclass(frozen=True)
class Disagreement:
    """An image on which two networks that should be the same are not.

    Attributes:
        image: What it is: `test image 3`, `adversarial image 0`.
        difference: Largest difference of a logit, relative as in `TOLERANCE`.
        fooled: Whether the first network is wrong, and whether the second is.
    """

    image: str
    difference: float
    fooled: tuple[bool, bool]

    def __str__(self) -> str:
        """As in `test image 3: logits differ by 2.1e-01, only the first is wrong`."""
        said = {(True, False): ", only the first is wrong", (False, True): ", only the second is wrong"}
        return f"{self.image}: logits differ by {self.difference:.1e}{said.get(self.fooled, '')}"


@dataclass(frozen=True)
class Comparison:
    """Everything that was compared.

    Attributes:
        images: Number of images whose logits were compared, clean and adversarial.
        difference: Largest difference of a logit, relative as in `TOLERANCE`.
        disagreements: Images beyond the tolerance.
        bout: The two networks under the same attack.
    """

    images: int
    difference: float
    disagreements: tuple[Disagreement, ...]
    bout: Bout

    @property
    def agrees(self) -> bool:
        """Whether the second network is the first."""
        return not self.disagreements and not self.bout.differs

    def __str__(self) -> str:
        """The measurements, in two lines."""
        bout, total = self.bout, len(self.bout.ids)
        return (
            f"logits differ by at most {self.difference:.1e} on {self.images} clean and adversarial images; "
            f"attacked again: {bout.first.sum()} of {total} robust before, {bout.second.sum()} after.\n"
            f"Held only before: {_some(bout.only_first)}; only after: {_some(bout.only_second)} "
            f"(p = {bout.p_value:.2g})."
        )

    def evidence(self) -> str:
        """The images that show a difference."""
        return "\n".join([str(self), *map(str, self.disagreements[:MOST_NAMED])])


def compare(
    first: nn.Module,
    second: nn.Module,
    attack: Attack,
    ids: NDArray[np.int64],
    batch: tuple[Tensor, Tensor],
    known: Iterable[tuple[Tensor, Tensor]] = (),
    seed: int = 0,
) -> Comparison:
    """Find out whether two networks are the same.

    Logits are compared on the clean images, on what the attack finds on either, and on known adversarial examples: an
    example that fools one fools the other, up to a tie. Then the two attacks are compared sample by sample.

    Args:
        first: Images in [0, 1] to logits.
        second: What claims to be the same.
        attack: Needs no gradients.
        ids: Names of the samples, (n,).
        batch: Their images (n, C, H, W) and labels (n,).
        known: Batches of adversarial images, and labels.
        seed: Of both attacks.
    """
    bout = fight(first, second, attack, ids, *batch, seed)
    seen, largest, found = 0, 0.0, []
    kinds = {"test image": [batch], "adversarial image": [bout.examples], "image of the receipt": known}
    for kind, batches in kinds.items():
        place = 0
        for x, y in batches:
            differences = _differences(first, second, x, y, f"{kind} {{}}", place)
            largest = max([largest, *(item.difference for item in differences)])
            found += [item for item in differences if item.difference > TOLERANCE]
            place += len(x)
        seen += place
    return Comparison(seen, largest, tuple(found), bout)


def _differences(
    first: nn.Module, second: nn.Module, x: Tensor, y: Tensor, name: str, start: int
) -> list[Disagreement]:
    """By how much two networks disagree on each image of a batch."""
    if len(x) == 0:
        return []
    ours, theirs = _logits(first, x), _logits(second, x)
    relative = (ours - theirs).abs().amax(1) / ours.abs().amax(1).clamp(min=1)
    values = relative.nan_to_num(nan=float("inf")).tolist()
    wrong = zip(*(misclassified(logits, y).tolist() for logits in (ours, theirs)), strict=True)
    rows = zip(values, wrong, strict=True)
    return [Disagreement(name.format(start + place), value, fooled) for place, (value, fooled) in enumerate(rows)]


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits.float()


def _some(samples: list[int]) -> str:
    shown = ", ".join(map(str, samples[:MOST_NAMED])) or "none"
    return f"{shown}, ..." if len(samples) > MOST_NAMED else shown
