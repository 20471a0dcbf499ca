"""Standalone neural ODE, and its residual network (Jaroudi et al., 2022)."""

import math
from abc import ABC
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import Net
from lightning_paf.nets.ode.block import ODEBlock, Solver
from lightning_paf.nn.activations import Tanh
from lightning_paf.utils.options import checked

_ROUNDING = 1e-6  # relative; times are decimal fractions


class FirstComponents(nn.Linear):
    """Linear layer without parameters that returns the first components of its input.

    Args:
        width: Components of the input.
        count: Components of the output, at most `width`.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__(width, count, bias=False, device="meta")  # draws no numbers
        del self.weight
        self.register_buffer("weight", torch.eye(count, width), persistent=False)


class StandaloneNet(Net, ABC):
    """Euler steps on the pixels themselves.

    The steps are `x_{i+1} = x_i + step * sigma(W_i x_i + b_i)`. There is neither encoder nor decoder: the state has D
    components, one per value of the image, and the logits are the first of them. The initial state is the negated
    image, with ink of value -1: an activation >= 0 can only increase the state, towards targets 0 and 1.

    Args:
        num_classes: Width of the logits, at most D.
        in_channels: Channels of the images.
        image_size: Side to which images are averaged, inside the network; D = in_channels * image_size ** 2.
        depth: Number of steps.
        step: Length of a step.

    Attributes:
        weight: (depth, D, D).
        bias: (depth, D).
        depth: Number of steps.
        step: Length of a step.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int, depth: int, step: float) -> None:
        super().__init__(num_classes)
        width = in_channels * image_size**2
        if image_size < 1 or width < num_classes:
            least = math.isqrt(max(num_classes - 1, 0) // in_channels) + 1
            raise ValueError(
                f"image_size must give at least {num_classes} components, as many as classes, got {image_size} with "
                f"{in_channels} channels. Pass --model.net.image_size {least} or more."
            )
        self.image_size, self.depth, self.step = image_size, depth, step
        self.weight = nn.Parameter(torch.empty(depth, width, width))
        self.bias = nn.Parameter(torch.empty(depth, width))
        self.activation: nn.Module = Tanh()
        self.fc = FirstComponents(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.fc(self.terminal_state(x))
        return logits

    def terminal_state(self, x: Tensor) -> Tensor:
        """State (N, D) after all steps, from images (N, in_channels, H, W)."""
        z = self.initial_state(x)
        weights, biases = self.weight.unbind(), self.bias.unbind()  # one gradient for all; by index for tracing
        for i in range(self.depth):
            z = z + self.step * self.activation(F.linear(z, weights[i], biases[i]))
        return z

    def initial_state(self, x: Tensor) -> Tensor:
        """Negated averages (N, D) of images (N, in_channels, H, W)."""
        return -F.adaptive_avg_pool2d(x, self.image_size).flatten(1)

    def rest_state(self) -> Tensor:
        """T sigma(0), the terminal state from 0 with zero weights, (1, D) and detached."""
        with torch.no_grad():
            rest: Tensor = self.depth * self.step * self.activation(torch.zeros_like(self.bias[:1]))
        return rest

    def extra_repr(self) -> str:
        """Settings, so that fingerprints of networks differ."""
        return f"image_size={self.image_size}, depth={self.depth}, step={self.step}"


class SNODE(StandaloneNet):
    """Standalone neural ODE, whose weights are functions of depth.

    It solves dx/dt = sigma(W(t) x + b(t)) on [0, T], from the negated image. Jaroudi, Maly, Eilertsen, Johansson,
    Unger, Baravdish, "Standalone Neural ODEs with Sensitivity Analysis", arXiv:2205.13933, 2022. The weights belong to
    the starts of the steps. They start smooth: normal values with standard deviation 1 / D at the times 0, 1, ..., T,
    connected by a cubic spline. 5,791,800 parameters for 14 x 14 pixels. The activation, tanh by default, is applied in
    each step.

    Args:
        num_classes: Width of the logits, at most D.
        in_channels: Channels of the images.
        image_size: Side to which images are averaged, inside the network; D = in_channels * image_size ** 2.
        t_end: End T of the interval, > 0.
        step: Length of a step, which must divide `t_end`.
        solver: `euler`, or a solver of `ODEBlock` with weights that are linear between the starts of steps, and
            constant in the last step. `dopri5` is the method of MATLAB's ODE45, without step-size control.

    Raises:
        ValueError: A value outside its range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 14,
        t_end: float = 3.0,
        step: float = 0.02,
        solver: Solver = "euler",
    ) -> None:
        depth = _number_of_steps(t_end, step)
        checked("solver", solver, solver in get_args(Solver), "euler, midpoint, rk4 or dopri5", "euler")
        super().__init__(num_classes, in_channels, image_size, depth, step)
        self.t_end, self.solver = t_end, solver
        basis = _spline(max(round(t_end), 1), depth)
        for parameter in (self.weight, self.bias):
            draws = torch.randn(basis.shape[1], *parameter.shape[1:]) / self.bias.shape[1]
            nn.init.zeros_(parameter)
            parameter.data += torch.tensordot(basis.to(draws), draws, dims=1)

    def terminal_state(self, x: Tensor) -> Tensor:
        """State (N, D) at `t_end`, from images (N, in_channels, H, W)."""
        if self.solver == "euler":
            return super().terminal_state(x)
        flow = ODEBlock(self._velocity, self.t_end, self.step, self.solver)  # no submodule, since it has no weights
        return flow.states(self.initial_state(x), [self.t_end])[0]

    def extra_repr(self) -> str:
        """Settings, so that fingerprints of networks differ."""
        return super().extra_repr() + ("" if self.solver == "euler" else f", solver={self.solver}")

    def _velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """dx/dt (N, D) at time `t`."""
        position = float(t) / self.step
        low = min(int(position), self.depth - 1)
        high, fraction = min(low + 1, self.depth - 1), position - low
        weight, bias = (torch.lerp(p[low], p[high], fraction) for p in (self.weight, self.bias))
        velocity: Tensor = self.activation(F.linear(z, weight, bias))
        return velocity


class SNODEResNet(StandaloneNet):
    """Residual network of the same form as `SNODE`, with independent initial weights.

    The control of Jaroudi et al. (2022). The weights of all layers start from a normal distribution with standard
    deviation 1 / D. 5,791,800 parameters for 14 x 14 pixels.

    Args:
        num_classes: Width of the logits, at most D.
        in_channels: Channels of the images.
        image_size: Side to which images are averaged, inside the network; D = in_channels * image_size ** 2.
        depth: Number of layers, at least 1.
        step: Factor of the residual branches, > 0.

    Raises:
        ValueError: A value outside its range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 14,
        depth: int = 150,
        step: float = 0.02,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}. Pass --model.net.depth 150.")
        _require_positive("step", step, 0.02)
        super().__init__(num_classes, in_channels, image_size, depth, step)
        for parameter in (self.weight, self.bias):
            nn.init.normal_(parameter, std=1 / self.bias.shape[1])


def _require_positive(name: str, value: float, usual: float) -> None:
    checked(name, value, 0 < value < math.inf, "finite and > 0", usual)


def _number_of_steps(t_end: float, step: float) -> int:
    _require_positive("t_end", t_end, 3.0)
    _require_positive("step", step, 0.02)
    count = max(round(t_end / step), 1)
    if abs(t_end / step - count) > _ROUNDING * count:
        raise ValueError(
            f"t_end must be a multiple of the step {step:g}, got {t_end:g}. Pass --model.net.step {t_end / count:.10g}."
        )
    return count


def _spline(intervals: int, depth: int) -> Tensor:
    """Cubic spline at `depth` steps, as a matrix that acts on `intervals` + 1 knots."""
    import numpy as np
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.arange(intervals + 1), np.eye(intervals + 1))
    return torch.from_numpy(spline(np.arange(depth) * intervals / depth)).float()
