"""A network that trains within seconds on a CPU."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import Net, init_convolutions, require_stride


class SmallConvNet(Net):
    """Four 3x3 convolutions without batch norm, for demonstrations and tests.

    Made for the 8x8 digits of scikit-learn.

    Not from a paper. Without batch norm images do not affect each other, in training and in evaluation. The activation
    is applied 4 times.

    Args:
        in_channels: Channels of the images, of any size from 4x4 upwards.
        width: Channels of the first two convolutions; the other two have twice as many.
        stem_stride: Stride of the first convolution, which divides the resolution of all later layers (Li et al. 2022).

    Raises:
        ValueError: A stride below 1.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 16, stem_stride: int = 1) -> None:
        super().__init__(num_classes, width)
        require_stride(stem_stride)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel_size=3, stride=stem_stride, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, kernel_size=3, padding=1),
            nn.ReLU(),
        )
        self.fc = nn.Linear(2 * width * 4 * 4, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        # The 4x4 grid of means keeps the position of a stroke; at 8x8 pixels it equals the features.
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(self.features(x), 4).flatten(1))
        return logits
