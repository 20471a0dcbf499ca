"""Queries of an attack, and its distances for several query budgets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.catalogue.minimal import MinimalAttack
from lightning_paf.speed.search_model import Passes, SearchModel


@dataclass(frozen=True)
class CurvePoint:
    """Result of an attack with a budget of queries.

    Attributes:
        budget: Maximum number of queries for an image.
        queries: Mean number of queries for an image.
        median: Median distance of the adversarial images; infinite where there is none for half of the images.
        found: Fraction of the images with an adversarial image.
    """

    budget: int
    queries: float
    median: float
    found: float


def counted(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Passes]:
    """Attack a batch, and count the images that pass through the model.

    Args:
        attack: Any attack.
        model: Images to logits. Left unchanged.
        x: Images (N, C, H, W) inside the attack's bounds.
        y: Labels (N,).

    Returns:
        The result of the attack, and the passes: images in forward passes, and in backward passes. `exact` is 0
        except for attacks that confirm the result of a faster model with the original one.
    """
    counter = SearchModel(model, fold=False)
    return attack(counter, x, y), counter.passes


def query_curve(
    make: Callable[[int], MinimalAttack], model: nn.Module, x: Tensor, y: Tensor, budgets: Sequence[int]
) -> list[CurvePoint]:
    """Distances of the results of an attack for several budgets of queries.

    Args:
        make: Maps a number of queries to the attack, as in `lambda n: SignOPT(queries=n)`.
        model: Images to logits. Left unchanged.
        x: Images (N, C, H, W), at least one.
        y: Labels (N,).
        budgets: Maximum numbers of queries for each image.

    Raises:
        ValueError: No image.
    """
    if len(x) == 0:
        raise ValueError("A query curve must have at least one image, got none. Pass at least one.")
    curve = []
    for budget in budgets:
        counter = SearchModel(model, fold=False)
        _, distances = make(budget).nearest(counter, x, y)
        found = float(distances.isfinite().float().mean())
        curve.append(CurvePoint(budget, counter.passes.forward / len(x), float(distances.median()), found))
    return curve
