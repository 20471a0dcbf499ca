"""Pre-activation ResNet-18 and ResNet-34 for 32x32 images."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import (
    Net,
    basic_stages,
    conv1x1,
    conv3x3,
    init_convolutions,
    require_stride,
)

Shortcut = Literal["activated", "raw"]


class PreActBlock(nn.Module):
    """Pre-activation block; a shortcut projects the input, activated or raw."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, projected: Shortcut = "activated") -> None:
        super().__init__()
        self.projected = projected
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.activation1 = nn.ReLU()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.activation2 = nn.ReLU()
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        activated = self.activation1(self.bn1(x))
        residual: Tensor = self.conv2(self.activation2(self.bn2(self.conv1(activated))))
        if self.shortcut is None:
            return residual + x
        shortcut: Tensor = self.shortcut(x if self.projected == "raw" else activated)
        return residual + shortcut


class PreActResNet(Net):
    """Pre-activation ResNet with a final batch norm, as in Rice et al. 2020.

    He et al. 2016, "Identity Mappings in Deep Residual Networks".

    PreActResNet-18 has 17 activations and 11,172,170 parameters for 10 classes. The keys are those of the common CIFAR
    implementations (`conv1`, `layerL.B`, `bn`, `linear`), whichever `shortcut` they have.

    Args:
        depth: 18 or 34.
        in_channels: Channels of the images.
        width: Channels of the first stage, doubled in each of the three others; 64 in the literature.
        stem_stride: Stride of the first convolution, which divides the resolution of all later layers (Li et al. 2022);
            1 in the literature. The keys do not depend on it.
        he_init: Whether convolutions start with fan-out variance (He et al. 2015); false keeps PyTorch's default, which
            is 2.45 times narrower for equal numbers of channels, as in Wong et al. 2020.
        final_norm: Whether a batch norm and an activation follow the last block; those of Andriushchenko and Flammarion
            2020 have neither, nor their keys.
        shortcut: Input of the projections: `activated` as in Rice et al. 2020, or `raw` as in Wong et al. 2020, N-FGSM
            and RobustBench. The keys do not depend on it.

    Raises:
        ValueError: Unknown depth or shortcut, or a stride below 1.
    """

    not_in_keys: ClassVar[Mapping[str, str]] = {
        "shortcut": "raw (Wong et al. 2020, N-FGSM, RobustBench) or activated (Rice et al. 2020)"
    }

    def __init__(
        self,
        depth: Literal[18, 34] = 18,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        stem_stride: int = 1,
        he_init: bool = True,
        final_norm: bool = True,
        shortcut: Shortcut = "activated",
    ) -> None:
        super().__init__(num_classes, width)
        require_stride(stem_stride)
        if shortcut not in ("activated", "raw"):
            raise ValueError(f"shortcut must be activated or raw, got {shortcut!r}. Pass --model.net.shortcut raw.")
        self.conv1 = conv3x3(in_channels, width, stem_stride)
        self.layer1, self.layer2, self.layer3, self.layer4 = basic_stages(
            partial(PreActBlock, projected=shortcut), depth, width
        )
        self.bn = nn.BatchNorm2d(8 * width) if final_norm else nn.Identity()
        self.activation = nn.ReLU() if final_norm else nn.Identity()
        self.linear = nn.Linear(8 * width, num_classes)
        if he_init:
            init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = self.activation(self.bn(x))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
