"""Vector fields of neural ODEs: two 3x3 convolutions with group norm."""

import torch
from torch import Tensor, nn

from lightning_paf.nets.layers import conv3x3, require_width


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """Group norm of a feature map.

    Raises:
        ValueError: No channels, or groups that do not divide them.
    """
    require_width(channels)
    if groups < 1 or channels % groups:
        divisors = [number for number in range(1, channels + 1) if channels % number == 0]
        near = min(divisors, key=lambda number: abs(number - groups), default=1)
        raise ValueError(
            f"groups must divide the {channels} channels of the group norm, got {groups}. "
            f"Pass --model.net.groups {near}."
        )
    return nn.GroupNorm(groups, channels)


class TimeConv2d(nn.Module):
    """3x3 convolution of a state with one more channel, filled with the time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, kernel_size=3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Map time, a scalar, and state (N, C, H, W) to (N, C, H, W)."""
        clock = t.to(z.dtype).expand(z.shape[0], 1, *z.shape[2:])
        out: Tensor = self.conv(torch.cat([clock, z], dim=1))
        return out


class AutonomousField(nn.Module):
    """Time-invariant field: convolution, group norm and ReLU, twice.

    The last activation makes it nonnegative if the activation is.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv1: nn.Module = conv3x3(channels, channels)
        self.norm1, self.activation1 = group_norm(groups, channels), nn.ReLU()
        self.conv2: nn.Module = conv3x3(channels, channels)
        self.norm2, self.activation2 = group_norm(groups, channels), nn.ReLU()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Velocity (N, C, H, W) of a state of this shape; the time has no effect."""
        z = self.activation1(self.norm1(self.conv1(z)))
        velocity: Tensor = self.activation2(self.norm2(self.conv2(z)))
        return velocity


class TimeField(AutonomousField):
    """The same field with the time as a channel of both convolutions, and biases."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, groups)
        self.conv1, self.conv2 = TimeConv2d(channels), TimeConv2d(channels)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Velocity (N, C, H, W) of a state of this shape at time t."""
        z = self.activation1(self.norm1(self.conv1(t, z)))
        velocity: Tensor = self.activation2(self.norm2(self.conv2(t, z)))
        return velocity


class PreNormTimeField(nn.Module):
    """Group norm, ReLU and convolution with the time, twice, and another group norm."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.activation1 = group_norm(groups, channels), nn.ReLU()
        self.conv1 = TimeConv2d(channels)
        self.norm2, self.activation2 = group_norm(groups, channels), nn.ReLU()
        self.conv2 = TimeConv2d(channels)
        self.norm3 = group_norm(groups, channels)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Velocity (N, C, H, W) of a state of this shape at time t."""
        z = self.conv1(t, self.activation1(self.norm1(z)))
        velocity: Tensor = self.norm3(self.conv2(t, self.activation2(self.norm2(z))))
        return velocity
