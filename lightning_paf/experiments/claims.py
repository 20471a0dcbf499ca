"""Claims about metrics of variants, each with a 95 % interval."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lightning_paf.experiments.intervals import Interval

Side = tuple[str, str]
"""Variant and metric."""
Measured = Mapping[Side, "Sequence[NDArray[np.float64]]"]
"""Per variant, metric and seed: one value per image (N,), or a single value (1,)."""


class AbstractClaim(ABC):
    """The claim that a number computed from metrics exceeds a bound.

    Attributes:
        text: The claim in the paper's terms, one sentence.
        metric: `clean`, `pgd`, `autoattack`, or a metric of the experiment.
        by: The bound; negative for "not worse by more than".
        source: `paper`, or `expected` for our own expectation.
    """

    text: str
    metric: str
    by: float = 0.0
    source: str

    @property
    @abstractmethod
    def sides(self) -> tuple[Side, ...]:
        """The variants and metrics that it compares."""

    @abstractmethod
    def interval(self, measured: Measured) -> "Interval":
        """The number and its interval, from the values of all `sides`.

        Raises:
            ValueError: Fewer than two seeds, or variants with different numbers of them.
        """

    def described(self) -> dict[str, Any]:
        """The compared sides as plain values; `metric` is shown in tables."""
        return {"metric": self.metric, "variants": list(dict.fromkeys(variant for variant, _ in self.sides))}

    def is_plain(self, plain: Collection[str]) -> bool:
        """Whether the number is no difference of fractions, given the plain metrics."""
        return self.metric in plain


class DifferenceClaim(AbstractClaim):
    """Base class of claims about a difference for each seed and image."""

    @abstractmethod
    def difference(self, values: "Sequence[NDArray[np.float64]]") -> "NDArray[np.float64]":
        """Difference (seeds, images) of the values of all `sides`, each (seeds, images)."""

    def interval(self, measured: Measured) -> "Interval":
        """Interval over seeds and images."""
        from lightning_paf.experiments.intervals import paired_interval

        return paired_interval(self.difference(_stacked(measured, self.sides)))


@dataclass(frozen=True)
class Claim(DifferenceClaim):
    """The claim that one variant exceeds another, or one metric another.

    Attributes:
        text: The claim in the paper's terms, one sentence.
        more: Variant with the larger value.
        less: Variant with the smaller value.
        metric: `clean`, `pgd`, `autoattack`, or a metric of the experiment.
        by: Smallest difference; negative for "not worse by more than".
        source: `paper`, or `expected` for our own expectation.
        than: Metric of the variant with the smaller value, if it differs.
    """

    text: str
    more: str
    less: str
    metric: str
    by: float = 0.0
    source: str = "expected"
    than: str = ""

    @property
    def sides(self) -> tuple[Side, ...]:
        """Larger and smaller side."""
        return (self.more, self.metric), (self.less, self.than or self.metric)

    def difference(self, values: "Sequence[NDArray[np.float64]]") -> "NDArray[np.float64]":
        """Larger minus smaller side."""
        more, less = values
        return more - less

    def described(self) -> dict[str, Any]:
        """Both sides."""
        return {"metric": f"{self.metric} > {self.than}".removesuffix(" > "), "more": self.more, "less": self.less}


@dataclass(frozen=True)
class BestClaim(DifferenceClaim):
    """The claim that a variant exceeds the best of several others.

    The best is the one with the largest mean over seeds and images. This choice favours the others.
    """

    text: str
    more: str
    others: tuple[str, ...]
    metric: str
    source: str = "expected"

    @property
    def sides(self) -> tuple[Side, ...]:
        """The variant, then the others."""
        return tuple((variant, self.metric) for variant in (self.more, *self.others))

    def difference(self, values: "Sequence[NDArray[np.float64]]") -> "NDArray[np.float64]":
        """The variant minus the best of the others."""
        more, *others = values
        return more - max(others, key=lambda other: float(other.mean()))


@dataclass(frozen=True)
class GainClaim(DifferenceClaim):
    """The claim that one variant gains more over another than a third over a fourth.

    Attributes:
        text: The claim, one sentence.
        gain: Two variants: the gain is the first minus the second.
        over: Two variants with the smaller gain.
        metric: As in `AbstractClaim`.
        source: As in `AbstractClaim`.
    """

    text: str
    gain: tuple[str, str]
    over: tuple[str, str]
    metric: str
    source: str = "expected"

    @property
    def sides(self) -> tuple[Side, ...]:
        """The variants of both gains."""
        return tuple((variant, self.metric) for variant in (*self.gain, *self.over))

    def difference(self, values: "Sequence[NDArray[np.float64]]") -> "NDArray[np.float64]":
        """Difference of the differences."""
        more, less, more_over, less_over = values
        return (more - less) - (more_over - less_over)


@dataclass(frozen=True)
class BoundClaim(DifferenceClaim):
    """The claim that a metric of a variant exceeds a constant, such as its start."""

    text: str
    variant: str
    metric: str
    bound: float
    source: str = "expected"

    @property
    def sides(self) -> tuple[Side, ...]:
        """The variant."""
        return ((self.variant, self.metric),)

    def difference(self, values: "Sequence[NDArray[np.float64]]") -> "NDArray[np.float64]":
        """The metric minus the constant."""
        return values[0] - self.bound

    def described(self) -> dict[str, Any]:
        """The metric with its constant."""
        return super().described() | {"metric": f"{self.metric} - {self.bound:.3g}".replace("- -", "+ ")}


@dataclass(frozen=True)
class RankClaim(AbstractClaim):
    """The claim that a metric rises with another one over several variants.

    The number is Spearman's rank correlation of their means over seeds.
    """

    text: str
    variants: tuple[str, ...]
    metric: str
    along: str
    source: str = "expected"

    @property
    def sides(self) -> tuple[Side, ...]:
        """Both metrics of all variants."""
        return tuple((variant, metric) for metric in (self.along, self.metric) for variant in self.variants)

    def interval(self, measured: Measured) -> "Interval":
        """Rank correlation over the variants."""
        import numpy as np

        from lightning_paf.experiments.intervals import rank_interval

        means = np.array([values.mean() for values in _stacked(measured, self.sides)])
        return rank_interval(*means.reshape(2, -1))

    def described(self) -> dict[str, Any]:
        """Both metrics."""
        return super().described() | {"metric": f"{self.metric} ~ {self.along}, rank correlation"}

    def is_plain(self, plain: Collection[str]) -> bool:
        """A correlation is no fraction."""
        return True


def _stacked(measured: Measured, sides: Sequence[Side]) -> "list[NDArray[np.float64]]":
    """Values (seeds, images) of each side."""
    import numpy as np

    values = [np.stack(measured[side]).astype(np.float64) for side in sides]
    if len({len(found) for found in values}) > 1 or len(values[0]) < 2:
        counts = " and ".join(f"{len(found)} of {variant}" for (variant, _), found in zip(sides, values, strict=True))
        raise ValueError(f"All variants must have the same number of seeds, at least 2, got {counts}. Pass --seeds 3.")
    return values
