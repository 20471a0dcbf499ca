"""Building blocks shared by several networks."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.utils.options import checked

Block = Callable[[int, int, int], nn.Module]
"""Makes a block from (in_channels, out_channels, stride)."""


def require_width(width: int) -> None:
    """Check a number of channels, or a factor of it."""
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}. Pass another --model.net.width.")


class Net(nn.Module):
    """A network whose last linear layer returns the logits.

    Args:
        num_classes: Width of the logits.
        width: Number or factor of channels, to check.

    Raises:
        ValueError: The width is below 1.
    """

    def __init__(self, num_classes: int, width: int = 1) -> None:
        super().__init__()
        require_width(width)
        self.num_classes = num_classes

    def get_classifier(self) -> nn.Linear:
        """Last linear layer."""
        *_, last = (module for module in self.modules() if isinstance(module, nn.Linear))
        return last


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1 and without bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def stage(block: Block, count: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Chain `count` residual blocks; only the first has the stride."""
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1) for _ in range(count - 1)))


def basic_stages(block: Block, depth: int, width: int) -> list[nn.Sequential]:
    """Build the four stages of a ResNet of basic blocks (He et al. 2016, table 1).

    The first has `width` channels. Each of the others doubles the channels and halves the resolution.

    Raises:
        ValueError: The depth is not 18 or 34.
    """
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
    if depth not in counts:
        raise ValueError(f"depth must be 18 or 34, got {depth}. Pass --model.net.depth 18 or 34.")
    channels = [width, width, 2 * width, 4 * width, 8 * width]
    return [
        stage(block, count, *pair, stride=min(number, 2))
        for number, (count, pair) in enumerate(zip(counts[depth], pairwise(channels), strict=True), 1)
    ]


def wide_groups(group: Callable[[int, int, int, int], nn.Module], depth: int, width: int) -> list[nn.Module]:
    """Build the three groups of a Wide ResNet (Zagoruyko and Komodakis 2016).

    `group` makes one from (number of blocks, in_channels, out_channels, stride); `width` multiplies the channels.

    Raises:
        ValueError: The depth is not 6 n + 4 with n >= 1.
    """
    count, rest = divmod(depth - 4, 6)
    if rest or count < 1:
        valid = 6 * max(count, 1) + 4
        raise ValueError(
            f"depth must be 6 n + 4 with n >= 1, got {depth}. Pass --model.net.depth {valid} or {valid + 6}."
        )
    return [
        group(count, 16, 16 * width, 1),
        group(count, 16 * width, 32 * width, 2),
        group(count, 32 * width, 64 * width, 2),
    ]


def require_stride(stem_stride: int) -> None:
    """Check the stride of the first convolution."""
    if stem_stride < 1:
        raise ValueError(
            f"stem_stride must be at least 1, got {stem_stride}. "
            "Pass --model.net.stem_stride 2, or 1 for the resolution of the image."
        )


def init_convolutions(net: nn.Module) -> None:
    """Initialise convolutions with fan-out variance and zero bias (He et al. 2015)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_batchnorm_momentum(net: nn.Module, momentum: float) -> None:
    """Set the momentum of every batch norm, the weight of the newest batch."""
    checked("bn_momentum", momentum, 0 <= momentum <= 1, "in [0, 1]", 0.1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


class SameConv2d(nn.Conv2d):
    """3x3 convolution with TensorFlow's `SAME` padding, asymmetric at stride 2.

    At stride 2 an even side gets one row of zeros at its end and none at its start, so the sampling grid lies one pixel
    further than with `padding=1`: weights trained with one padding do not suit the other.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride, padding=2 - stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        if self.stride == (2, 2):
            height, width = x.shape[-2:]
            x = F.pad(x, (width % 2, 1, height % 2, 1))
        return super().forward(x)


class Standardize(nn.Module):
    """Normalisation per channel, with constants that are not in the state dict.

    Args:
        mean: One value per channel, for images in [0, 1]; an empty tuple leaves images unchanged.
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
                f"mean and std must have one value for each of the {in_channels} channels, got mean={mean} and "
                f"std={std}. Pass both with that length, or neither for normalised images."
            )
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images (N, in_channels, H, W)."""
        return (x - self.mean) / self.std
