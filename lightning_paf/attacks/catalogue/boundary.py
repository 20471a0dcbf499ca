"""The boundary attack."""

from fractions import Fraction

import torch
from torch import Tensor

from lightning_paf.attacks.catalogue.decisions import Decisions, unit
from lightning_paf.attacks.catalogue.minimal import MinimalAttack
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import Bounds
from lightning_paf.types import Forward, Radius

_TOLERANCE = 1e-3  # of the first bisection
_FACTOR = 1.5  # of a change of the step length
_PERIOD = 20  # steps between two changes
_FIRST = 1e-2  # both step lengths, in multiples of the distance
_SIDEWAYS_RATE, _TOWARDS_RATE = 0.5, 0.25  # targets of the success rates


class Boundary(MinimalAttack):
    """A decision-based random walk along the boundary (Brendel, Rauber & Bethge 2018).

    It starts at noise that the model misclassifies. Every step moves sideways on the sphere around the clean image;
    if that is adversarial, it moves a little towards the image. The last adversarial point is kept. After every 20
    steps of one kind their length grows by half or shrinks accordingly, for success rates of one half (sideways) and
    one quarter (towards), as in the paper; period and factor are our choice. A step costs up to two queries.

    Args:
        eps: l2 radius within which a result counts as adversarial.
        queries: Query budget per image.
        starts: Largest number of noise images tried until one is adversarial.
        bounds: Smallest and largest pixel value, between which the noise is uniform; null for unbounded inputs, where
            it is Gaussian.
        target: See `Attack`.

    Raises:
        ValueError: `queries` or `starts` is below 1; see also `Attack`.
    """

    settings = ("queries", "starts")

    def __init__(
        self,
        eps: Radius = Fraction(1, 2),
        *,
        queries: int = 5000,
        starts: int = 100,
        bounds: Bounds = (0.0, 1.0),
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm="l2", bounds=bounds, target=target)
        self.queries, self.starts = queries, starts
        self.require(queries=1, starts=1)

    @torch.no_grad()
    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest adversarial images and their distances."""
        decisions = Decisions(forward, x, y, self.queries, self.bounds)
        rows, offsets = self._start(decisions, decisions.correct_rows())
        sideways, towards = _Length(len(rows), x.device), _Length(len(rows), x.device)
        while (active := decisions.remaining[rows] > 0).any():
            rows, offsets = rows[active], offsets[active]
            sideways.keep(active)
            towards.keep(active)
            offsets = self._step(decisions, rows, offsets, sideways, towards)
        return decisions.nearest.x, decisions.nearest.distances

    def _start(self, decisions: Decisions, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (n,) of images with adversarial noise; offsets of the boundary (n, D)."""
        offsets, found = torch.zeros_like(decisions.x[rows].flatten(1)), torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(self.starts):
            missing = (~found).nonzero().squeeze(1)
            if len(missing) == 0:
                break
            x = decisions.x[rows[missing]]
            noise = torch.randn_like(x) if self.bounds is None else torch.empty_like(x).uniform_(*self.bounds) - x
            offsets[missing] = noise.flatten(1)
            found[missing] = decisions.is_adversarial(rows[missing], offsets[missing])
        rows, offsets = rows[found], offsets[found]
        high, directions = offsets.norm(dim=1), unit(offsets)
        distances = decisions.bisect(rows, torch.zeros_like(high), high, directions, _TOLERANCE)
        return rows, distances[:, None] * directions

    def _step(
        self, decisions: Decisions, rows: Tensor, offsets: Tensor, sideways: "_Length", towards: "_Length"
    ) -> Tensor:
        """Offsets (n, D) after one step."""
        distance, direction = offsets.norm(dim=1, keepdim=True), unit(offsets)
        noise = torch.randn_like(offsets)
        tangent = unit(noise - (noise * direction).sum(1, keepdim=True) * direction)
        moved = distance * unit(direction + sideways.value[:, None] * tangent)
        if self.bounds is not None:
            x = decisions.x[rows].flatten(1)
            moved = (x + moved).clamp(*self.bounds) - x
        stays = decisions.is_adversarial(rows, moved)
        sideways.record(torch.ones_like(stays), stays, _SIDEWAYS_RATE)
        nearer = (1 - towards.value.clamp_max(0.9))[:, None] * moved
        tried = stays & (decisions.remaining[rows] > 0)
        counts = torch.zeros_like(stays)
        counts[tried] = decisions.is_adversarial(rows[tried], nearer[tried])
        towards.record(tried, counts, _TOWARDS_RATE)
        return torch.where(counts[:, None], nearer, torch.where(stays[:, None], moved, offsets))


class _Length:
    """Step lengths (n,), in multiples of the distance, adapted to a success rate."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.value = torch.full((count,), _FIRST, device=device)
        self.tried = torch.zeros(count, device=device)
        self.succeeded = torch.zeros(count, device=device)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.value, self.tried, self.succeeded = self.value[rows], self.tried[rows], self.succeeded[rows]

    def record(self, tried: Tensor, succeeded: Tensor, rate: float) -> None:
        """Count trials and successes (n,); adapt at the end of a period."""
        self.tried += tried
        self.succeeded += succeeded
        over = self.tried >= _PERIOD
        factor = torch.where(self.succeeded > rate * self.tried, _FACTOR, 1 / _FACTOR)
        self.value = torch.where(over, self.value * factor, self.value)
        self.tried, self.succeeded = torch.where(over, 0, self.tried), torch.where(over, 0, self.succeeded)
