"""What an attack asks of a model, and what it gets for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.catalogue.minimal import MinimalAttack
from lightning_paf.speed.search_model import Passes, SearchModel


@dataclass(frozen=True)
class CurvePoint:
    """What a budget buys.

    Attributes:
        budget: Queries that the attack may use for an image.
        queries: Queries that it used for an image, the mean.
        median: Median distance of what it found; infinite where it found nothing for half of the images.
        found: Share of the images for which it found something.
    """

    budget: int
    queries: float
    median: float
    found: float


def counted(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Passes]:
    """Attack a batch, and count the images that went through the model.

    Args:
        attack: Any attack.
        model: Images to logits. Left as found.
        x: Images (N, C, H, W) inside the attack's bounds.
        y: Labels (N,).

    Returns:
        What the attack returns, and the passes: images shown, and images whose gradient was taken (once for each
        backward pass). `exact` is 0 except for attacks that confirm by an untouched model what a faster one says.
    """
    counter = SearchModel(model, fold=False)
    return attack(counter, x, y), counter.passes


def query_curve(
    make: Callable[[int], MinimalAttack], model: nn.Module, x: Tensor, y: Tensor, budgets: Sequence[int]
) -> list[CurvePoint]:
    """Distances that an attack reaches with several budgets, each from the beginning.

    Args:
        make: From a number of queries to the attack, as in `lambda n: SignOPT(queries=n)`.
        model: Images to logits. Left as found.
        x: Images (N, C, H, W), at least one.
        y: Labels (N,).
        budgets: Queries for each image.

    Raises:
        ValueError: No image.
    """
    if len(x) == 0:
        raise ValueError("A query curve needs at least one image. Give some.")
    curve = []
    for budget in budgets:
        counter = SearchModel(model, fold=False)
        _, distances = make(budget).nearest(counter, x, y)
        found = float(distances.isfinite().float().mean())
        curve.append(CurvePoint(budget, counter.passes.forward / len(x), float(distances.median()), found))
    return curve
