"""Building blocks that several networks share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1 and without bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def stage(
    block: Callable[[int, int, int], nn.Module], count: int, in_channels: int, out_channels: int, stride: int
) -> nn.Sequential:
    """Chain `count` residual blocks, of which the first changes width and resolution.

    Args:
        block: Makes a block from (in_channels, out_channels, stride).
        count: Number of blocks.
        in_channels: Channels that enter the first block.
        out_channels: Channels that leave every block.
        stride: Stride of the first block; the others have stride 1.
    """
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1) for _ in range(count - 1)))


def basic_block_counts(depth: int) -> tuple[int, int, int, int]:
    """Blocks in each of the four stages of a ResNet made of two-convolution blocks (He et al. 2016, table 1).

    Raises:
        ValueError: The depth is not 18 or 34.
    """
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
    if depth not in counts:
        raise ValueError(
            f"A ResNet of this kind has depth 18 or 34, but depth={depth}. Pass --model.net.depth 18 or 34."
        )
    return counts[depth]


def wide_block_count(depth: int) -> int:
    """Blocks in each of the three groups of a wide residual network (Zagoruyko and Komodakis 2016).

    Raises:
        ValueError: The depth is not 6 n + 4 with n >= 1.
    """
    count, rest = divmod(depth - 4, 6)
    if rest or count < 1:
        valid = 6 * max(count, 1) + 4
        raise ValueError(
            f"A wide residual network has depth 6 n + 4 with n >= 1, but depth={depth}. "
            f"Pass --model.net.depth {valid} or {valid + 6}."
        )
    return count


def require_stride(stem_stride: int) -> None:
    """Refuse a stride of the first convolution that is none.

    Raises:
        ValueError: A stride below 1.
    """
    if stem_stride < 1:
        raise ValueError(
            f"The first convolution has a stride of at least 1, but stem_stride={stem_stride}. "
            "Pass --model.net.stem_stride 2, or 1 for the resolution of the image."
        )


def init_convolutions(net: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / (k*k * out_channels)) and set its bias to zero (He et al. 2015, fan-out)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_batchnorm_momentum(net: nn.Module, momentum: float) -> None:
    """Set the fraction of the newest batch in the running statistics of every batch norm."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution with TensorFlow's `SAME` padding, which at stride 2 is not symmetric.

    At stride 2 an even side gets one row of zeros at its end and none at its start, so the sampling grid lies one pixel
    further than with `padding=1`: weights trained with one padding do not suit the other.

    Args:
        in_channels: Channels that enter.
        out_channels: Channels that leave.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride, padding=2 - stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        if self.stride == (2, 2):
            height, width = x.shape[-2:]
            x = F.pad(x, (width % 2, 1, height % 2, 1))
        return super().forward(x)


class Standardize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel; neither is part of the state dict.

    Args:
        mean: One value per channel, for images in [0, 1]; an empty tuple leaves images as they are.
        std: One value per channel.
        in_channels: Channels of the images.

    Raises:
        ValueError: Lengths differ from each other or from the number of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], in_channels: int) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) not in (0, in_channels):
            raise ValueError(
                f"mean and std need one value for each of the {in_channels} channels, but mean={mean} and std={std}. "
                "Pass both with that length, or neither for images that are normalised already."
            )
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images (N, in_channels, H, W)."""
        return (x - self.mean) / self.std
