"""Results of claims: an interval and a conclusion each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_paf.experiments.claims import AbstractClaim, Measured

Conclusion = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True)
class ClaimResult:
    """Test of one claim.

    Attributes:
        claim: The claim.
        difference: The number that must exceed the bound, such as first variant minus second, the mean over seeds.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    claim: AbstractClaim
    difference: float
    low: float
    high: float

    @property
    def conclusion(self) -> Conclusion:
        """Whether the interval lies above, below or around the claimed difference.

        Inconclusive if no seed and no image differs, for example if both accuracies are 0.
        """
        if self.low == self.high:
            return "inconclusive"
        if self.low > self.claim.by:
            return "reproduced"
        return "not reproduced" if self.high < self.claim.by else "inconclusive"

    def shown(self, plain: bool = False) -> str:
        """Text such as `+12.0 [+8.1, +15.9] (claimed > -5.0)`, in percentage points.

        `+0.57 [+0.55, +0.58]` if `plain`.
        """
        values = (self.difference, self.low, self.high, self.claim.by)
        difference, low, high, by = (f"{value:+.2f}" if plain else f"{100 * value:+.1f}" for value in values)
        return f"{difference} [{low}, {high}]" + (f" (claimed > {by})" if self.claim.by else "")


def compare(claim: AbstractClaim, measured: Measured) -> ClaimResult:
    """Test a claim on the values of its sides.

    Raises:
        ValueError: Fewer than two seeds, or variants with different numbers of them.
    """
    found = claim.interval(measured)
    return ClaimResult(claim, found.value, found.low, found.high)


def overall(results: Sequence[ClaimResult]) -> Conclusion:
    """Worst conclusion of the paper's claims, or of ours if no claim of it is tested."""
    claimed = [result for result in results if result.claim.source != "expected"] or results
    words = {result.conclusion for result in claimed}
    if "not reproduced" in words:
        return "not reproduced"
    return "reproduced" if words == {"reproduced"} else "inconclusive"
