"""Pre-activation ResNets in the layout of DeepMind's robust models."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import (
    Net,
    SameConv2d,
    Standardize,
    basic_stages,
    conv3x3,
    init_convolutions,
    set_batchnorm_momentum,
)


class DMPreActBlock(nn.Module):
    """Pre-activation block with `SAME` padding and a 3x3 convolution as shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(in_channels)
        self.relu_0 = nn.SiLU()
        self.conv_2d_1 = SameConv2d(in_channels, out_channels, stride)
        self.batchnorm_1 = nn.BatchNorm2d(out_channels)
        self.relu_1 = nn.SiLU()
        self.conv_2d_2 = conv3x3(out_channels, out_channels)
        projects = stride != 1 or in_channels != out_channels
        self.shortcut = SameConv2d(in_channels, out_channels, stride) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        """Map to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        residual = self.conv_2d_1(self.relu_0(self.batchnorm_0(x)))
        residual = self.conv_2d_2(self.relu_1(self.batchnorm_1(residual)))
        out: Tensor = residual + (x if self.shortcut is None else self.shortcut(x))
        return out


class DMPreActResNet(Net):
    """Pre-activation ResNets 18 and 34 with SiLU in DeepMind's layout.

    Used by Gowal et al. 2021, Rebuffi et al. 2021 and Rade 2021.

    17 SiLU at depth 18. The shortcuts are 3x3 convolutions, unlike those of `PreActResNet`.

    Args:
        depth: 18 or 34.
        in_channels: Channels of the images.
        width: Channels of the first stage, doubled in each of the three others; 64 in the literature.
        mean: Per-channel mean that the network subtracts, for use without `Classifier` or with `normalize=False`; empty
            for normalised images.
        std: Per-channel standard deviation that goes with `mean`.
        bn_momentum: Weight of the newest batch in the running statistics. With 0.01, as in Wang et al. 2023, the
            initial statistics matter for hundreds of steps.
        he_init: Whether convolutions start with fan-out variance (He et al. 2015); false keeps PyTorch's default, which
            is 2.45 times narrower for equal numbers of channels, as in the code of Rade 2021.

    Raises:
        ValueError: Unknown depth, or `mean` and `std` of another length than the channels.
    """

    def __init__(
        self,
        depth: Literal[18, 34] = 18,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        bn_momentum: float = 0.1,
        he_init: bool = True,
    ) -> None:
        super().__init__(num_classes, width)
        self.normalize = Standardize(mean, std, in_channels)
        self.conv_2d = conv3x3(in_channels, width)
        self.layer_0, self.layer_1, self.layer_2, self.layer_3 = basic_stages(DMPreActBlock, depth, width)
        self.batchnorm = nn.BatchNorm2d(8 * width)
        self.relu = nn.SiLU()
        self.logits = nn.Linear(8 * width, num_classes)
        if he_init:
            init_convolutions(self)
        set_batchnorm_momentum(self, bn_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.conv_2d(self.normalize(x))
        x = self.layer_3(self.layer_2(self.layer_1(self.layer_0(x))))
        x = self.relu(self.batchnorm(x))
        logits: Tensor = self.logits(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
