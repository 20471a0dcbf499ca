"""Nonlinear conjugate gradients with the step length of the sensitivity problem."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_paf.nn.sobolev import sobolev_gradient
from lightning_paf.utils.options import checked

Slope = Callable[[float], tuple[float, float]]
"""First and second derivative of a cost along a direction, at a step length."""

Sensitivity = Callable[[Mapping[Tensor, Tensor]], Slope]
"""Linearises a cost along a direction, given as the change of each parameter."""

Formula = Literal["fr", "pr+", "fr-pr", "hs", "dy"]


class _Products(NamedTuple):
    """Inner products of the gradients g, the previous gradient p and direction d."""

    gg: float
    gp: float
    pp: float
    dg: float
    dp: float


_FORMULAS: Mapping[Formula, Callable[[_Products], float]] = MappingProxyType(
    {
        "fr": lambda a: a.gg / a.pp,
        "pr+": lambda a: max(0.0, (a.gg - a.gp) / a.pp),
        "fr-pr": lambda a: min(max((a.gg - a.gp) / a.pp, -a.gg / a.pp), a.gg / a.pp),
        "hs": lambda a: (a.gg - a.gp) / (a.dg - a.dp),
        "dy": lambda a: a.gg / (a.dg - a.dp),
    }
)

_NEWTON_STEPS, _TOLERANCE = 50, 1e-10


class SobolevNCG(Optimizer):
    """Nonlinear conjugate gradients on each batch (Jaroudi et al., 2022).

    A step takes `iterations` iterations on one batch, from steepest descent on. Each evaluates the closure, adds gamma
    times the previous direction to the negative gradient, and moves to the minimum of the cost along this direction.
    The output of the network is linearised there: its derivative solves the sensitivity problem. The state is empty,
    since each batch restarts from steepest descent, as does a direction along which the cost does not fall.
    Jaroudi et al., "Standalone Neural ODEs with Sensitivity Analysis", arXiv:2205.13933, 2022.

    The derivatives come from `sensitivity`, which the training sets for objectives with a method `slope`, such as
    `TerminalCost`. Attacks and noise inside the closure are drawn again in each iteration.

    Args:
        params: Parameters or parameter groups.
        lr: Factor of the step length; 1 for the minimum.
        formula: gamma: `fr` (Fletcher-Reeves), `pr+` (Polak-Ribiere, >= 0), `fr-pr` (Polak-Ribiere, clamped to
            Fletcher-Reeves), `hs` (Hestenes-Stiefel) or `dy` (Dai-Yuan).
        iterations: Iterations on each batch, at least 1.
        sobolev: T for gradients in W^{1,2}: `t_end` of the network. Parameters of two dimensions or more are functions
            of depth on n cells of [0, T], along their first dimension. Null for gradients in L2.

    Attributes:
        evaluations: Evaluations of the closure per step.
        sensitivity: Linearises the cost of the last evaluation.

    Raises:
        ValueError: A value outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        formula: Formula = "fr",
        iterations: int = 6,
        sobolev: float | None = None,
    ) -> None:
        option = "--model.optimizer"
        checked("lr", lr, 0 < lr < math.inf, "finite and > 0", 1.0, option)
        checked("formula", formula, formula in get_args(Formula), "fr, pr+, fr-pr, hs or dy", "fr", option)
        checked("iterations", iterations, iterations >= 1, "at least 1", 6, option)
        checked("sobolev", sobolev, sobolev is None or 0 < sobolev < math.inf, "finite and > 0, or null", 3.0, option)
        super().__init__(params, {"lr": lr})
        self.formula: Formula = formula
        self.evaluations, self.sobolev = iterations, sobolev
        self.sensitivity: Sensitivity | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take `iterations` iterations.

        Args:
            closure: Clears the gradients, computes the loss and its gradient, and returns the loss.

        Returns:
            The loss of the first evaluation.

        Raises:
            ValueError: There is no closure or no `sensitivity`.
        """
        if closure is None:
            raise ValueError(
                "The closure must be given to SobolevNCG, which evaluates it several times, got none. "
                "Pass --trainer.precision 32-true or bf16-mixed."
            )
        if self.sensitivity is None:
            raise ValueError("sensitivity must be set for SobolevNCG, got None. Pass --model.objective TerminalCost.")
        losses, before, direction = [], list[Tensor](), list[Tensor]()
        for _ in range(self.evaluations):
            with torch.enable_grad():
                losses.append(closure())
            with torch.no_grad():
                weights = {p: group["lr"] for group in self.param_groups for p in group["params"] if p.grad is not None}
                gradient = [self._representative(weight) for weight in weights]
                gamma = self._gamma(gradient, before, direction) if before else 0.0
                direction = self._move(weights, gradient, direction, gamma, self.sensitivity)
                before = gradient
        return losses[0]

    def _representative(self, weight: Tensor) -> Tensor:
        gradient = weight.grad
        assert gradient is not None
        return gradient.clone() if self.sobolev is None or weight.ndim < 2 else sobolev_gradient(gradient, self.sobolev)

    def _gamma(self, g: Sequence[Tensor], p: Sequence[Tensor], d: Sequence[Tensor]) -> float:
        products = _Products(_dot(g, g), _dot(g, p), _dot(p, p), _dot(d, g), _dot(d, p))
        try:
            return _FORMULAS[self.formula](products)
        except ZeroDivisionError:
            return 0.0

    def _move(
        self,
        weights: Mapping[Tensor, float],
        gradient: Sequence[Tensor],
        previous: Sequence[Tensor],
        gamma: float,
        sensitivity: Sensitivity,
    ) -> list[Tensor]:
        """Move to the minimum along the new direction, and return the direction."""
        direction = [-g for g in gradient]
        if gamma:
            direction = [d.add_(before, alpha=gamma) for d, before in zip(direction, previous, strict=True)]
        slope = sensitivity(dict(zip(weights, direction, strict=True)))
        if gamma and not slope(0.0)[0] < 0:
            direction = [-g for g in gradient]
            slope = sensitivity(dict(zip(weights, direction, strict=True)))
        length = increasing_root(slope)
        for (weight, lr), d in zip(weights.items(), direction, strict=True):
            weight.add_(d, alpha=lr * length)
        return direction


def increasing_root(slope: Slope) -> float:
    """Find the positive root of an increasing function.

    It takes safeguarded steps of Newton's method. The result is 0 where the function is not negative at 0. If there is
    no root, since the function tends to 0, it is a point at which the function is 1e-10 of its value at 0.
    """
    start, derivative = slope(0.0)
    value, at, low, high = start, 0.0, 0.0, math.inf
    if not start < 0:
        return 0.0
    for _ in range(_NEWTON_STEPS):
        newton = at - value / derivative if derivative > 0 else math.inf
        if not low < newton < high or newton == math.inf:
            newton = (low + high) / 2 if high < math.inf else 2 * low + 1
        at = newton
        value, derivative = slope(at)
        if abs(value) <= _TOLERANCE * -start:
            break
        low, high = (at, high) if value < 0 else (low, at)
    return at


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum(torch.sum(x * y) for x, y in zip(a, b, strict=True)))
