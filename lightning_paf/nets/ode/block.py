"""Neural ODE block: a feature map flows along a learned vector field."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_paf.utils.options import checked

Field = Callable[[Tensor, Any], Any]
"""Maps a time, a scalar, and a state to the time derivative of the state."""

Solver = Literal["euler", "midpoint", "rk4", "dopri5"]

_ROUNDING = 1e-6  # relative; times are sums of decimal fractions


class ODEBlock(nn.Module):
    """The state at time `t_end` of dz/dt = f(t, z), from the input at time 0.

    torchdiffeq solves it with fixed steps, and autograd differentiates through all of them: the gradient is exactly
    that of the output, and images do not affect each other. There is no step-size control, since input gradients
    through it are wrong: by 2 to 100 % on a field with ReLU, at any tolerance, compared with differences in float64.

    Args:
        field: Module or function `(t, z)` with a time, a scalar tensor, and a state (N, ...); returns dz/dt of the same
            shape.
        t_end: Time of the output, > 0.
        step: Length of a step, which must divide `t_end`.
        solver: `euler`, `midpoint`, `rk4` or `dopri5`, of order 1, 2, 4 and 5; they evaluate the field 1, 2, 4 and 6
            times per step.

    Raises:
        ValueError: A value outside its range.
    """

    def __init__(
        self,
        field: Field,
        t_end: float = 1.0,
        step: float = 0.1,
        solver: Solver = "euler",
    ) -> None:
        super().__init__()
        checked("t_end", t_end, 0 < t_end < math.inf, "finite and > 0", 1.0)
        checked("step", step, 0 < step < math.inf, "finite and > 0", 0.1)
        checked("solver", solver, solver in get_args(Solver), "euler, midpoint, rk4 or dopri5", "rk4")
        self.field = field
        self.t_end, self.step, self.solver = t_end, step, solver
        usual = t_end / max(round(t_end / step), 1)
        self._require_on_grid("t_end", t_end, f"Pass --model.net.step {usual:.10g}.")
        self._records: list[Tensor] | None = None
        self._window = (t_end, t_end)

    def forward(self, z: Tensor) -> Tensor:
        """Map the state (N, C, H, W) at time 0 to that at `t_end`."""
        if self._records is None or not self._in_training_pass():
            return self.states(z, [self.t_end])[0]
        out, length = self.path_length(z, *self._window)
        self._records.append(length.mean())
        return out

    def states(self, z: Tensor, times: Sequence[float] | Tensor, start: float = 0.0) -> Tensor:
        """Solve for the states at several times.

        Args:
            z: State (N, C, H, W) at time `start`.
            times: T times, ascending, all after `start`. States between steps are interpolated: linearly, by
                dopri5 with order 4. A tensor can require a gradient.
            start: Time of `z`.

        Returns:
            States (T, N, C, H, W).
        """
        (solution,) = self._solve(self.field, (z,), times, start)
        return solution

    def path_length(self, z: Tensor, t1: float, t3: float) -> tuple[Tensor, Tensor]:
        """Integrate |f| along the trajectory from time `t1` to `t3`, per coordinate.

        Args:
            z: State (N, C, H, W) at time 0.
            t1: Start, in [0, t_end].
            t3: End, at least `t_end` and after `t1`.

        Returns:
            The state at `t_end` and the integral, both (N, C, H, W).
        """

        def augmented(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            velocity = self.field(t, state[0])
            return velocity, velocity.abs()

        z = self.states(z, [t1])[0] if t1 > 0 else z
        times = sorted({self.t_end, t3} - {t1})
        states, lengths = self._solve(augmented, (z, torch.zeros_like(z)), times, t1)
        return (z if t1 == self.t_end else states[0]), lengths[-1]

    @contextmanager
    def recording(self, t1: float, t3: float) -> Iterator[list[Tensor]]:
        """Collect the mean of `path_length` in each pass that trains the field.

        Passes in eval mode, without gradients, or of a frozen field (attacks) are not recorded.

        Raises:
            ValueError: Times that are not on the solver's grid, or not around `t_end`.
        """
        self.require_window(t1, t3)
        self._window, self._records = (t1, t3), []
        try:
            yield self._records
        finally:
            self._records = None

    def require_window(self, t1: float, t3: float) -> None:
        """Check the times of `path_length`."""
        if not (0 <= t1 <= self.t_end <= t3 < math.inf and t1 < t3):
            raise ValueError(
                f"window must begin in [0, 1] and end at 1 or later, in units of t_end, got times {t1:g} and {t3:g} "
                f"for t_end={self.t_end:g}. Pass --model.objective.window '[0.9, 1.5]'."
            )
        for time in (t1, t3):
            near = round(time / self.step) * self.step / self.t_end
            hint = f"Pass {near:.6g} in --model.objective.window."
            self._require_on_grid("window times t_end", time, hint)

    def _require_on_grid(self, name: str, time: float, hint: str) -> None:
        """Check that a time is a multiple of the step."""
        count = time / self.step
        if abs(count - round(count)) > _ROUNDING * max(count, 1):
            raise ValueError(f"{name} must be a multiple of the step {self.step:g}, got {time:g}. {hint}")

    def extra_repr(self) -> str:
        """Settings, so that fingerprints of networks differ."""
        return f"t_end={self.t_end}, step={self.step}, solver={self.solver}"

    def _in_training_pass(self) -> bool:
        trained = next(self.parameters(), None)
        return self.training and torch.is_grad_enabled() and (trained is None or trained.requires_grad)

    def _solve(
        self, field: Field, state: tuple[Tensor, ...], times: Sequence[float] | Tensor, start: float
    ) -> tuple[Tensor, ...]:
        """States at `times`, each (T, N, C, H, W), without the first."""
        from torchdiffeq import odeint  # imports scipy

        like: dict[str, Any] = {
            "device": state[0].device,
            "dtype": torch.promote_types(state[0].dtype, torch.float32),
        }
        end = times.tolist()[-1] if isinstance(times, Tensor) else times[-1]
        steps = self._steps(start, end)
        grid = torch.tensor(steps, **like)
        t = torch.cat([grid[:1], torch.as_tensor(times, **like), grid[-1:]])
        if steps[-1] == end:
            t = t[:-1]
        if self.solver == "dopri5":  # accepts all errors, so that steps end on the grid only
            options = {"step_t": grid[1:], "first_step": 10 * steps[-1]}
        else:
            options = {"grid_constructor": lambda *_: grid}
        y = state if len(state) > 1 else state[0]
        solution = odeint(field, y, t, rtol=1e9, atol=1e9, method=self.solver, options=options)
        return tuple(part[1 : len(times) + 1] for part in (solution if len(state) > 1 else (solution,)))

    def _steps(self, start: float, end: float) -> list[float]:
        """Start and ends of all steps, on multiples of the step so that parts join."""
        first, last = start / self.step, end / self.step
        later = range(math.floor(first + _ROUNDING) + 1, math.ceil(last - _ROUNDING) + 1)
        inner = [number * self.step for number in later]
        return [start, *inner[:-1], end if abs(last - round(last)) < _ROUNDING else inner[-1]]
