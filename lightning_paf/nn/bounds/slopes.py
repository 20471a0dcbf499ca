"""Optimised slopes of lines (alpha-CROWN)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_paf.nn.bounds.interval import Interval
from lightning_paf.nn.bounds.lines import Lines, Slopes

Bound = Callable[[Mapping[int, Slopes]], Tensor]
"""Maps slopes by activation to lower bounds (K, N), differentiably."""


class SlopeSearch:
    """Gradient ascent on a lower bound, over the slopes of all lines.

    Every sum and image has separate slopes. For ReLU this is the parameter of alpha-CROWN (Xu et al. 2021), the slope
    of the line below; for a smooth function a slope corresponds to the point where the line touches it.

    Args:
        start: Lines of each activation, where the search starts.
        ranges: Smallest and largest slope of each activation on its interval.
        rows: Number of sums K.
        steps: Steps of Adam.
        lr: Step size, as a fraction of the range of slopes.
    """

    def __init__(
        self, start: Mapping[int, Lines], ranges: Mapping[int, Interval], rows: int, steps: int = 20, lr: float = 0.1
    ) -> None:
        self.ranges, self.steps, self.lr = ranges, steps, lr
        self.positions = {
            number: [
                self._position(number, slope).expand(rows, *slope.shape).clone().requires_grad_()
                for slope in (lines.lower_slope, lines.upper_slope)
            ]
            for number, lines in start.items()
        }

    def run(self, bound: Bound) -> Mapping[int, Slopes]:
        """The best slopes found for each sum and image."""
        parameters = [position for pair in self.positions.values() for position in pair]
        optimizer = torch.optim.Adam(parameters, self.lr)
        best, kept = None, [position.detach().clone() for position in parameters]
        for step in range(self.steps + 1):
            found = bound(self._slopes(self.positions))
            better = found > best if best is not None else torch.ones_like(found, dtype=torch.bool)
            best = found.detach() if best is None else torch.maximum(best, found.detach())
            with torch.no_grad():
                for old, new in zip(kept, parameters, strict=True):
                    old[better] = new[better]
            if step < self.steps:
                optimizer.zero_grad()
                torch.autograd.backward(-found.sum())
                optimizer.step()
                with torch.no_grad():
                    for position in parameters:
                        position.clamp_(0, 1)
        pairs = dict(zip(self.positions, zip(kept[::2], kept[1::2], strict=True), strict=True))
        return self._slopes(pairs)

    def _position(self, number: int, slope: Tensor) -> Tensor:
        low, high = self.ranges[number]
        return ((slope - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)

    def _slopes(self, positions: Mapping[int, tuple[Tensor, ...] | list[Tensor]]) -> Mapping[int, Slopes]:
        return {
            number: Slopes(*(torch.lerp(*self.ranges[number], position) for position in pair))
            for number, pair in positions.items()
        }
