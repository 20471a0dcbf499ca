"""ResNet-18 and -34 in the layout of Dai et al. (2021)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import Net, basic_stages, conv1x1, conv3x3, init_convolutions


class PostActBlock(nn.Module):
    """Post-activation block of two 3x3 convolutions with batch norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU()
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        residual = self.activation(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        out: Tensor = self.activation(residual + (x if self.downsample is None else self.downsample(x)))
        return out


class CifarResNet(Net):
    """Post-activation ResNet for 32x32 images, as trained by Dai et al. 2021.

    The architecture is that of He et al. 2016.

    ResNet-18 applies its activation 17 times and has 11,173,962 parameters for 10 classes. The keys are those of the
    released checkpoints.

    Args:
        depth: 18 or 34.
        in_channels: Channels of the images.
        width: Channels of the first stage, doubled in each of the three others; 64 in the literature.
        stem: `cifar` is one 3x3 convolution at full resolution; `imagenet` is a 7x7 convolution and a max-pool that
            divide the resolution by 4, as for ImageNette in the paper.
        he_init: Whether convolutions start with fan-out variance (He et al. 2015); false keeps PyTorch's default, which
            is 2.45 times narrower for equal numbers of channels, as in Wang et al. 2020.

    Raises:
        ValueError: Unknown depth or stem.
    """

    def __init__(
        self,
        depth: Literal[18, 34] = 18,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        stem: Literal["cifar", "imagenet"] = "cifar",
        he_init: bool = True,
    ) -> None:
        super().__init__(num_classes, width)
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be cifar or imagenet, got {stem!r}. Pass --model.net.stem cifar.")
        self.activation = nn.ReLU()
        self.conv1 = conv3x3(in_channels, width)
        self.maxpool: nn.Module = nn.Identity()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = basic_stages(PostActBlock, depth, width)
        self.fc = nn.Linear(8 * width, num_classes)
        if he_init:
            init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.activation(self.bn1(self.conv1(x))))
        # One assignment each: a nested call would keep the outputs of all earlier stages in memory.
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
