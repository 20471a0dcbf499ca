"""The boundary attack."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.decisions import Decisions, unit
from lightning_paf.attacks.catalogue.minimal import MinimalAttack
from lightning_paf.functional.geometry import Bounds
from lightning_paf.types import Forward, Radius

_TOLERANCE = 1e-3  # of the first bisection; the walk comes nearer
_FACTOR = 1.5  # by which step lengths change
_MEMORY = 20  # steps whose share of successes decides about that
_FIRST = 1e-2  # both step lengths, in multiples of the distance
_SIDEWAYS_SHARE, _TOWARDS_SHARE = 0.5, 0.25  # successes at which the lengths are right


class Boundary(MinimalAttack):
    """A random walk along the boundary (Brendel, Rauber & Bethge 2018), asking for decisions only.

    From noise that the model misclassifies, every step goes sideways on the sphere around the clean image, and where
    that is adversarial, a little towards the image; it counts where the result is. After every 20 steps of one kind its
    length grows by half or shrinks accordingly: sideways so that half of them succeed, towards so that a quarter does
    (the shares are the paper's; memory and factor are ours). A step costs up to two decisions.

    Args:
        eps: Largest l2 length of the perturbation that counts.
        queries: Decisions for each image.
        starts: Noise images that are tried until one is adversarial.
        bounds: Smallest and largest pixel value, between which the noise is uniform; null for inputs without bounds,
            where it is Gaussian.

    Raises:
        ValueError: As for every attack; no query or start.
    """

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        queries: int = 5000,
        starts: int = 100,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(eps, norm="l2", bounds=bounds)
        self.queries = queries
        self.starts = starts
        self.require(queries=1, starts=1)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        return super().describe() | {"queries": self.queries, "starts": self.starts}

    @torch.no_grad()
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images and distances."""
        oracle = Decisions(forward, x, y, self.queries, self.bounds)
        every = torch.arange(len(x), device=x.device)
        rows = every[~oracle.wrong(every, torch.zeros_like(x.flatten(1)))]
        rows, offsets = self._start(oracle, rows)
        sideways, towards = _Length(len(rows), x.device), _Length(len(rows), x.device)
        while True:
            going = oracle.left[rows] > 0
            if not going.any():
                return oracle.nearest.x, oracle.nearest.distances
            rows, offsets = rows[going], offsets[going]
            sideways.keep(going)
            towards.keep(going)
            offsets = self._step(oracle, rows, offsets, sideways, towards)

    def _start(self, oracle: Decisions, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The images for which some noise is adversarial (n,), and where the boundary is on the way there (n, D)."""
        offsets, found = torch.zeros_like(oracle.x[rows].flatten(1)), torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(self.starts):
            open_ = (~found).nonzero().squeeze(1)
            if len(open_) == 0:
                break
            offsets[open_] = self._noise(oracle.x[rows[open_]]).flatten(1)
            found[open_] = oracle.wrong(rows[open_], offsets[open_])
        rows, offsets = rows[found], offsets[found]
        high, directions = offsets.norm(dim=1), unit(offsets)
        distances = oracle.between(rows, torch.zeros_like(high), high, directions, _TOLERANCE)
        return rows, distances[:, None] * directions

    def _noise(self, x: Tensor) -> Tensor:
        if self.bounds is None:
            return torch.randn_like(x)
        return torch.empty_like(x).uniform_(*self.bounds) - x

    def _step(
        self, oracle: Decisions, rows: Tensor, offsets: Tensor, sideways: "_Length", towards: "_Length"
    ) -> Tensor:
        """Offsets (n, D) after one step."""
        distance, direction = offsets.norm(dim=1, keepdim=True), unit(offsets)
        noise = torch.randn_like(offsets)
        tangent = unit(noise - (noise * direction).sum(1, keepdim=True) * direction)
        beside = distance * unit(direction + sideways.value[:, None] * tangent)
        beside = self._inside(oracle.x[rows], beside)
        stays = oracle.wrong(rows, beside)
        sideways.record(torch.ones_like(stays), stays, _SIDEWAYS_SHARE)
        nearer = (1 - towards.value.clamp_max(0.9))[:, None] * beside
        asked = stays & (oracle.left[rows] > 0)
        counts = torch.zeros_like(stays)
        counts[asked] = oracle.wrong(rows[asked], nearer[asked])
        towards.record(asked, counts, _TOWARDS_SHARE)
        return torch.where(counts[:, None], nearer, torch.where(stays[:, None], beside, offsets))

    def _inside(self, x: Tensor, offsets: Tensor) -> Tensor:
        if self.bounds is None:
            return offsets
        return (x.flatten(1) + offsets).clamp(*self.bounds) - x.flatten(1)


class _Length:
    """Step lengths (n,), in multiples of the distance, that follow the share of successes."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.value = torch.full((count,), _FIRST, device=device)
        self.tried = torch.zeros(count, device=device)
        self.succeeded = torch.zeros(count, device=device)

    def keep(self, rows: Tensor) -> None:
        """Forget the others."""
        self.value, self.tried, self.succeeded = self.value[rows], self.tried[rows], self.succeeded[rows]

    def record(self, tried: Tensor, succeeded: Tensor, share: float) -> None:
        """Count; at the end of a period, adapt."""
        self.tried += tried
        self.succeeded += succeeded
        over = self.tried >= _MEMORY
        factor = torch.where(self.succeeded > share * self.tried, _FACTOR, 1 / _FACTOR)
        self.value = torch.where(over, self.value * factor, self.value)
        self.tried, self.succeeded = torch.where(over, 0, self.tried), torch.where(over, 0, self.succeeded)
