"""DnCNN, a residual network that removes noise from images."""

import math

from torch import Tensor, nn


class DnCNN(nn.Module):
    """DnCNN: convolutions that predict the noise to subtract (Zhang et al. 2017).

    3x3 convolutions without biases; all but the first and the last are followed by batch normalisation, all but the
    last by a ReLU. Initial weights are those of the code of Yan et al. (2022).

    Zhang, Zuo, Chen, Meng, Zhang, "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", IEEE
    TIP 2017.

    Args:
        in_channels: Channels of the images, of any size.
        depth: Number of convolutions; 17 for one noise level, 20 for blind and colour denoising.
        width: Channels of the hidden layers.

    Raises:
        ValueError: Fewer than two convolutions, or a width below 1.
    """

    def __init__(self, in_channels: int = 1, depth: int = 20, width: int = 64) -> None:
        super().__init__()
        for name, value, least in (("depth", depth, 2), ("width", width, 1), ("in_channels", in_channels, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}. Pass --model.net.{name} {least}.")
        layers: list[nn.Module] = [_convolution(in_channels, width), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [_convolution(width, width), _normalisation(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, _convolution(width, in_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Noisy images (N, in_channels, H, W) to denoised ones of the same shape."""
        noise: Tensor = self.layers(x)
        return x - noise


def _convolution(channels: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight)
    return layer


def _normalisation(width: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(width)
    nn.init.normal_(layer.weight, 0, math.sqrt(2 / (9 * width))).data.clamp_(-0.025, 0.025)
    return layer
