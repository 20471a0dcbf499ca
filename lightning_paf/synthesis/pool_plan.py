"""Classes, blocks and selection of the images of a pool."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class PoolPlan:
    """Images to draw and to keep, as a function of a few numbers.

    The drawn images are numbered in the order of the pool and form blocks, each with its own seed. With classes, their
    order is random. With `keep`, `count / keep` images of each class are drawn, and those with the highest scores kept.

    Args:
        count: Images in the pool.
        num_classes: Number of classes of the pool.
        conditional: Whether the generator draws given classes; otherwise a classifier labels its images.
        block_size: Images drawn together, in one batch of the network.
        seed: Seed of the images and their order.
        proportions: Fraction of the pool for each class, of sum 1; None for equal ones.
        keep: Fraction of the drawn images of each class to keep, in (0, 1]; None for all, without scores.

    Raises:
        ValueError: Fewer images than classes; proportions of another number or sum, of an unconditional generator, or
            that leave a class without images.
    """

    count: int
    num_classes: int
    conditional: bool = True
    block_size: int = 500
    seed: int = 0
    proportions: tuple[Fraction, ...] | None = None
    keep: Fraction | None = None

    def __post_init__(self) -> None:
        least, given = self.num_classes, self.proportions
        if self.count < least:
            raise ValueError(
                f"--count must be at least {least}, one for each class, got {self.count}. Pass --count {least}."
            )
        if given is None:
            return
        if not self.conditional:
            raise ValueError(
                f"--proportions must be of a class-conditional model, got {len(given)} for an unconditional one. Leave "
                "them out; the classes of its images are random."
            )
        if len(given) != least or sum(given) != 1 or min(given) < 0:
            raise ValueError(
                f"--proportions must be {least} numbers from 0 of sum 1, one for each class, got {len(given)} of sum "
                f"{float(sum(given)):g}. Pass e.g. --proportions {' '.join([f'1/{least}'] * min(least, 4))}"
                f"{' ...' * (least > 4)}."
            )
        if not self.counts.all():
            empty = int(self.counts.argmin())
            raise ValueError(
                f"--proportions must give each class one of {self.count} images, got {float(given[empty]):g} for class "
                f"{empty}. Pass another fraction, or more --count."
            )

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Images of each class in the pool of a conditional generator, (num_classes,)."""
        return allocate(self.count, self.proportions or [Fraction(1)] * self.num_classes)

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """Classes of the drawn images, (drawn,); None without given classes."""
        if not self.conditional:
            return None
        drawn = [self._drawn_for(int(count)) for count in self.counts]
        return np.random.default_rng(self.seed).permutation(np.repeat(np.arange(self.num_classes), drawn))

    @property
    def drawn(self) -> int:
        """Number of images to draw."""
        return self._drawn_for(self.count) if self.labels is None else len(self.labels)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return math.ceil(self.drawn / self.block_size)

    def size(self, block: int) -> int:
        """Return the number of images in a block."""
        return min(self.block_size, self.drawn - block * self.block_size)

    def block(self, number: int) -> tuple[int, torch.Tensor | None, torch.Generator]:
        """Return the arguments of `ImageGenerator.sample` for a block, from 0."""
        start, size = number * self.block_size, self.size(number)
        labels = None if self.labels is None else torch.from_numpy(self.labels[start : start + size])
        first = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        # The generator uses 32 bits: seeds in a row differ, while random ones would collide.
        return size, labels, torch.Generator().manual_seed((first + number) % 2**32)

    def kept(self, labels: NDArray[np.int64], scores: NDArray[np.float64] | None) -> NDArray[np.bool_]:
        """Select the images of the pool.

        Args:
            labels: Classes of all drawn images, (drawn,).
            scores: Confidence of a classifier in these classes, (drawn,); required with `keep`.

        Returns:
            Mask (drawn,) with `count` true entries: the highest scores of each class; the earlier image of equal ones.
        """
        if self.keep is None or scores is None:
            return np.ones(self.drawn, bool)
        found = np.bincount(labels, minlength=self.num_classes)
        counts = self.counts if self.conditional else allocate(self.count, found.tolist())
        kept = np.zeros(self.drawn, bool)
        for label, count in enumerate(counts):
            rows = np.flatnonzero(labels == label)
            kept[rows[np.argsort(-scores[rows], kind="stable")[:count]]] = True
        return kept

    def content(self) -> dict[str, Any]:
        """Return everything that the images depend on, as plain values."""
        fractions = None if self.proportions is None else " ".join(map(str, self.proportions))
        numbers = {name: getattr(self, name) for name in ("count", "num_classes", "block_size", "seed")}
        return {**numbers, "proportions": fractions, "keep": None if self.keep is None else str(self.keep)}

    def _drawn_for(self, count: int) -> int:
        return count if self.keep is None else math.ceil(count / self.keep)


def allocate(count: int, weights: Sequence[int | Fraction]) -> NDArray[np.int64]:
    """Divide images between classes in given proportions, by largest remainders.

    Args:
        count: Images in total.
        weights: Weight of each class, exact and at least 0, with a positive sum.

    Returns:
        Images of each class, (classes,), of sum `count`; the first classes get one more of equal remainders.
    """
    exact = [count * Fraction(weight) / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    for label in sorted(range(len(exact)), key=lambda label: counts[label] - exact[label])[: count - sum(counts)]:
        counts[label] += 1
    return np.array(counts, np.int64)
