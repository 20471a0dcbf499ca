"""Wide residual networks in the layout of TRADES and Dai et al. (2021)."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import Net, conv1x1, conv3x3, init_convolutions, stage, wide_groups


class WideBlock(nn.Module):
    """Pre-activation block; a shortcut projects the activated input if widths differ.

    Both activations are one registered module, so a block holds one set of activation parameters.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.activation = nn.ReLU()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.convShortcut = None if in_channels == out_channels else conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        activated = self.activation(self.bn1(x))
        residual: Tensor = self.conv2(self.activation(self.bn2(self.conv1(activated))))
        return residual + (x if self.convShortcut is None else self.convShortcut(activated))


class WideGroup(nn.Module):
    """Blocks of one resolution, under the key `layer`."""

    def __init__(self, count: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layer = stage(WideBlock, count, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(Net):
    """Wide residual network in the form of Zhang et al. 2019 and Dai et al. 2021.

    The architecture is that of Zagoruyko and Komodakis 2016.

    WRN-28-10 applies its activation 25 times from 13 registered modules (one in each block, one before the pooling) and
    has 36,479,194 parameters for 10 classes. The keys are those of the released checkpoints.

    Args:
        depth: 6 n + 4, e.g. 10, 16, 28, 34, 70.
        width: Widening factor: the three groups have 16, 32 and 64 times as many channels.
        in_channels: Channels of the images.

    Raises:
        ValueError: A depth other than 6 n + 4.
    """

    def __init__(self, depth: int = 28, width: int = 10, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(num_classes, width)
        self.conv1 = conv3x3(in_channels, 16)
        self.block1, self.block2, self.block3 = wide_groups(WideGroup, depth, width)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.activation = nn.ReLU()
        self.fc = nn.Linear(64 * width, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.activation(self.bn1(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
