"""LeNet with ReLU and max-pooling, for small experiments."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import Net


class LeNet(Net):
    """LeNet with two 5x5 convolutions and three linear layers.

    After LeCun et al. 1998, as trained by Shen et al. 2021.

    The activation is applied 4 times. 62,006 parameters for colour images and 10 classes.

    Args:
        in_channels: Channels of the images, whose sides must be 16 pixels or more.
    """

    smallest_side = 16  # checked by `Classifier`

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = F.max_pool2d(self.relu1(self.conv1(x)), 2)
        x = F.max_pool2d(self.relu2(self.conv2(x)), 2)
        # At 32x32 the grid is already 5x5; the mean is for images of other sizes.
        x = self.relu3(self.fc1(F.adaptive_avg_pool2d(x, 5).flatten(1)))
        logits: Tensor = self.fc3(self.relu4(self.fc2(x)))
        return logits
