"""Latent end time of a neural ODE: its posterior, and states at random times."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import Gamma

from lightning_paf.nets.ode.block import ODEBlock
from lightning_paf.nets.ode.fields import group_norm

SMALLEST, LARGEST = 1e-3, 100.0
"""Bounds of both parameters of a posterior."""

_EARLIEST = 1e-6  # end time


class EndTimeBlock(ODEBlock):
    """ODE block whose states are read at the end times of images.

    Args:
        field: See `ODEBlock`.
        t_end: Largest end time; larger ones are reduced to it.
        step: Length of a step, which must divide `t_end`.
        solver: See `ODEBlock`.
    """

    def states_at(self, z: Tensor, times: Tensor) -> Tensor:
        """Solve once, up to the largest time, and interpolate between steps.

        Args:
            z: States (N, C, H, W) at time 0.
            times: End times of each image (S, N), or of all images (S, 1), with their gradient. NaN gives NaN.

        Returns:
            States (S, N, C, H, W), by cubic Hermite interpolation.
        """
        position = times.clamp(_EARLIEST, self.t_end) / self.step
        known = position.detach().nan_to_num()
        left = (known.ceil() - 1).clamp_min(0).long()  # last step that starts before the time
        numbers = sorted({*left.flatten().tolist(), *(left + 1).flatten().tolist()})
        grid = [number * self.step for number in numbers]
        states = self.states(z, grid[1:] if grid[0] == 0 else grid)
        states = torch.cat([z[None], states]) if grid[0] == 0 else states
        clock = torch.tensor(grid, device=times.device, dtype=times.dtype)
        slopes = self.step * torch.stack([self.field(t, state) for t, state in zip(clock, states, strict=True)])
        row = torch.zeros(numbers[-1] + 1, dtype=torch.long, device=z.device)
        row[numbers] = torch.arange(len(numbers), device=z.device)
        images = torch.arange(len(z), device=z.device)
        s = (position - left)[..., None, None, None]
        first, last = (row[left], images), (row[left + 1], images)
        value = (1 + 2 * s) * (1 - s) ** 2 * states[first] + s**2 * (3 - 2 * s) * states[last]
        value = value + s * (1 - s) ** 2 * slopes[first] + s**2 * (s - 1) * slopes[last]
        return value.to(z.dtype)

    def require_window(self, t1: float, t3: float) -> None:
        """Refuse `SteadyState`, whose window is around a fixed end time."""
        raise ValueError(
            "The network must have a fixed end time for SteadyState, got a latent one. Pass --model.net NODE."
        )


class GammaPosterior(nn.Module):
    """Gamma distribution of the end time, the same for all images.

    Args:
        concentration: Initial shape parameter, in [0.001, 100].
        rate: Initial rate, in [0.001, 100].

    Raises:
        ValueError: A value outside its range.
    """

    def __init__(self, concentration: float, rate: float) -> None:
        super().__init__()
        if not all(SMALLEST <= value <= LARGEST for value in (concentration, rate)):
            raise ValueError(
                f"posterior must be two numbers in [{SMALLEST:g}, {LARGEST:g}], got {[concentration, rate]}. "
                "Pass --model.net.posterior '[1, 1]'."
            )
        self.concentration = nn.Parameter(torch.tensor(float(concentration)))
        self.rate = nn.Parameter(torch.tensor(float(rate)))

    def forward(self, x: Tensor) -> Gamma:
        """Distribution with batch shape (1,); the images have no effect."""
        return _gamma(*(value[None].clamp(SMALLEST, LARGEST) for value in (self.concentration, self.rate)))

    @torch.no_grad()
    def return_to_domain(self) -> None:
        """Clamp both parameters after an optimiser step."""
        for value in self.parameters():
            value.clamp_(SMALLEST, LARGEST)


class AmortisedPosterior(nn.Module):
    """Gamma distribution of the end time of each image, by an encoder.

    Its two outputs are logarithms of the shape parameter and the rate, clamped to those of [0.001, 100].

    Args:
        stem: Images (N, C, H, W) to features (N, width, H', W').
        width: Channels of the features.
        groups: Groups of the group norm.
    """

    def __init__(self, stem: nn.Module, width: int, groups: int) -> None:
        super().__init__()
        self.stem = stem
        self.norm, self.activation = group_norm(groups, width), nn.ReLU()
        self.fc = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Gamma:
        """Distributions (N,) of the end times of images (N, C, H, W)."""
        features = self.activation(self.norm(self.stem(x))).mean((2, 3))
        logs = _wide(self.fc(features)).clamp(math.log(SMALLEST), math.log(LARGEST))
        return _gamma(*logs.exp().unbind(1))

    def return_to_domain(self) -> None:
        """Do nothing, since every output is in the domain."""


def _gamma(concentration: Tensor, rate: Tensor) -> Gamma:
    # Without checks, which synchronise a GPU; NaN reaches the loss, whose error names the parameters.
    return Gamma(_wide(concentration), _wide(rate), validate_args=False)


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
