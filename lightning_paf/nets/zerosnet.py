"""ZeroSNet: zero-stable three-step residual networks (Chen et al., 2022)."""

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.functional.multistep import OPTIMAL, is_zero_stable, root_moduli, three_step_family
from lightning_paf.nets.layers import Net, conv1x1, conv3x3, init_convolutions

log = logging.getLogger(__name__)

_HISTORY = 3  # states of the scheme


class MultistepBlock(nn.Module):
    """One step `a0 x_n + a1 x_{n-1} + a2 x_{n-2} + b0 F(x_n)`.

    F is batch norm, ReLU and 3x3 convolution, twice. The first two blocks of a network lack a history and are plain
    residual blocks. A block that changes the shape projects each state by a separate 1x1 convolution.

    Args:
        in_channels: Channels of the states.
        out_channels: Channels of the next state.
        stride: Stride of the first convolution and of the projections.
        states: Number of states that earlier blocks leave, 1 to 3.
        coefficients: Fixed (a0, a1, a2, b0); null for a trainable parameter of `three_step_family`.
        parameter: Initial value of the trainable parameter.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        states: int,
        coefficients: Sequence[float] | None,
        parameter: float,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.activation1 = nn.ReLU()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.activation2 = nn.ReLU()
        self.conv2 = conv3x3(out_channels, out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.projections = nn.ModuleList(conv1x1(in_channels, out_channels, stride) for _ in range(states * changes))
        trains = states == _HISTORY and coefficients is None
        self.parameter = nn.Parameter(torch.tensor(float(parameter))) if trains else None
        self._coefficients = (*coefficients,) if states == _HISTORY and coefficients else (1.0, 1.0)

    def coefficients(self) -> Sequence[float | Tensor]:
        """Coefficients of the states and of F; (1, 1) of a residual block."""
        if self.parameter is None:
            return self._coefficients
        return three_step_family(self.parameter)

    def forward(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map the last states (N, in_channels, H, W), newest first, to the next ones."""
        residual = self.conv1(self.activation1(self.bn1(states[0])))
        residual = self.conv2(self.activation2(self.bn2(residual)))
        if self.projections:
            states = tuple(project(state) for project, state in zip(self.projections, states, strict=True))
        *factors, step = self.coefficients()
        if len(factors) == 1:
            return (states[0] + residual, *states)
        new = step * residual
        for factor, state in zip(factors, states, strict=True):
            # In place, one pass over memory each; `alpha` cannot be a tensor, nor a proxy of one.
            new = new.add_(state, alpha=factor) if isinstance(factor, int | float) else new.addcmul_(state, factor)
        return (new, *states)[:_HISTORY]


class ZeroSNet(Net):
    """Residual network whose blocks are steps of a zero-stable scheme.

    Chen, Jin, Shang, "Zero Stability Well Predicts Performance of Convolutional Neural Networks", AAAI 2023. The
    layout is that of the CIFAR ResNets of He et al. (2016): three stages, with `width`, 2 `width` and 4 `width`
    channels and (depth - 2) / 6 blocks each. The first two blocks are plain residual blocks.

    Args:
        depth: 6 n + 2, at least 8; 20, 32, 44, 56 or 110 in the paper.
        num_classes: Width of the logits.
        in_channels: Channels of the images.
        width: Channels of the first stage.
        parameter: Member of the family of consistent schemes of order 2: -1.8 is ZeroSNet-Opt. Zero-stable up to -1 and
            above 1/3. The initial value if `trainable`, 1 in the paper.
        trainable: Whether each block learns the parameter (ZeroSNet-Tra).
        coefficients: Other coefficients (a0, a1, a2, b0) instead of the family; `[1, 0, 0, 1]` is a ResNet.

    Raises:
        ValueError: A value outside its range, or coefficients that are trainable.
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
        parameter: float = OPTIMAL,
        trainable: bool = False,
        coefficients: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_classes, width)
        count = _blocks_of_a_stage(depth)
        fixed = _checked_coefficients(parameter, coefficients, trainable)
        _warn_if_unstable(fixed)
        self.conv = conv3x3(in_channels, width)
        blocks = []
        for number in range(3 * count):
            stage, first = number // count, number > 0 and number % count == 0
            channels = width * 2**stage
            before, stride = (channels // 2, 2) if first else (channels, 1)
            states = min(number + 1, _HISTORY)
            blocks.append(MultistepBlock(before, channels, stride, states, None if trainable else fixed, parameter))
        self.blocks = nn.ModuleList(blocks)
        self.bn = nn.BatchNorm2d(4 * width)
        self.activation = nn.ReLU()
        self.fc = nn.Linear(4 * width, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        states: tuple[Tensor, ...] = (self.conv(x),)
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(self.activation(self.bn(states[0])), 1).flatten(1))
        return logits

    def coefficients(self) -> list[tuple[float, ...]]:
        """Current coefficients (a0, a1, a2, b0) of all blocks with a full history."""
        blocks = [block for block in self.blocks if isinstance(block, MultistepBlock)]
        found = [tuple(c.item() if isinstance(c, Tensor) else c for c in block.coefficients()) for block in blocks]
        return [one for one in found if len(one) > 2]


def _blocks_of_a_stage(depth: int) -> int:
    count, rest = divmod(depth - 2, 6)
    if rest or count < 1:
        valid = 6 * max(count, 1) + 2
        raise ValueError(
            f"depth must be 6 n + 2 with n >= 1, got {depth}. Pass --model.net.depth {valid} or {valid + 6}."
        )
    return count


def _checked_coefficients(parameter: float, given: Sequence[float] | None, trainable: bool) -> tuple[float, ...]:
    if given is None:
        if parameter == 0 or not math.isfinite(parameter):
            raise ValueError(
                f"parameter must be finite and not 0, got {parameter}. Pass --model.net.parameter {OPTIMAL}."
            )
        return three_step_family(float(parameter))
    if trainable:
        raise ValueError(
            "trainable must be false for given coefficients, got true. Pass --model.net.parameter 1 without "
            "--model.net.coefficients."
        )
    if len(given) != 4 or not all(math.isfinite(c) for c in given):
        raise ValueError(
            f"coefficients must be four finite numbers, got {[*given]}. Pass --model.net.coefficients '[1, 0, 0, 1]'."
        )
    return (*given,)


def _warn_if_unstable(coefficients: Sequence[float]) -> None:
    if not is_zero_stable(coefficients):
        numbers = ", ".join(f"{c:.4g}" for c in coefficients)
        log.warning(
            "The coefficients (%s) are not zero-stable: the first three sum to %.4g (must be 1), and the largest "
            "extraneous root has modulus %.4g (at most 1).",
            *(numbers, sum(coefficients[:-1]), root_moduli(coefficients)[0]),
        )
