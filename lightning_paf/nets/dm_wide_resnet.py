"""Wide residual networks in the layout of DeepMind's robust models."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import (
    Net,
    SameConv2d,
    Standardize,
    conv1x1,
    conv3x3,
    init_convolutions,
    set_batchnorm_momentum,
    stage,
    wide_groups,
)


class DMWideBlock(nn.Module):
    """Pre-activation block with `SAME` padding and, if needed, a projection shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(in_channels)
        self.relu_0 = nn.SiLU()
        self.conv_0 = SameConv2d(in_channels, out_channels, stride)
        self.batchnorm_1 = nn.BatchNorm2d(out_channels)
        self.relu_1 = nn.SiLU()
        self.conv_1 = conv3x3(out_channels, out_channels)
        self.shortcut = None if in_channels == out_channels else conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        activated = self.relu_0(self.batchnorm_0(x))
        residual: Tensor = self.conv_1(self.relu_1(self.batchnorm_1(self.conv_0(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class DMWideGroup(nn.Module):
    """Blocks of one resolution, under the key `block`."""

    def __init__(self, count: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.block = stage(DMWideBlock, count, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.block(x)
        return out


class DMWideResNet(Net):
    """Wide residual network with SiLU in DeepMind's layout (Gowal et al. 2020).

    Also used by Rebuffi 2021, Wang 2023 and Bartoldson 2024.

    Same parameters as `WideResNet`, but other keys and `SAME` padding, so weights do not transfer between the two.
    WRN-28-10 has 25 SiLU, each a separate module, and 36,479,194 parameters for 10 classes.

    Args:
        depth: 6 n + 4, e.g. 28, 70, 82, 94.
        width: Widening factor: the three groups have 16, 32 and 64 times as many channels.
        in_channels: Channels of the images.
        mean: Per-channel mean that the network subtracts, for use without `Classifier` or with `normalize=False`; empty
            for normalised images.
        std: Per-channel standard deviation that goes with `mean`.
        bn_momentum: Weight of the newest batch in the running statistics. With 0.01, as in Wang et al. 2023, the
            initial statistics matter for hundreds of steps.

    Raises:
        ValueError: A depth other than 6 n + 4, or `mean` and `std` of another length than the channels.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__(num_classes, width)
        self.normalize = Standardize(mean, std, in_channels)
        self.init_conv = conv3x3(in_channels, 16)
        self.layer = nn.Sequential(*wide_groups(DMWideGroup, depth, width))
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.relu = nn.SiLU()
        self.logits = nn.Linear(64 * width, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.logits.bias)
        set_batchnorm_momentum(self, bn_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.layer(self.init_conv(self.normalize(x)))
        x = self.relu(self.batchnorm(x))
        logits: Tensor = self.logits(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
