"""VGG-16 with batch norm for 32x32 images, in the layout of Dai et al. (2021)."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.nets.layers import Net, init_convolutions

# Channels of each convolution in units of the width, one row per resolution; a max-pool follows each row.
_STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class VGG16BN(Net):
    """VGG-16 with batch norm, as trained by Dai et al. 2021.

    The architecture is that of Simonyan and Zisserman 2015, type D.

    The activation is applied 15 times: 13 in `features`, 2 in `classifier`. 15,253,578 parameters for 10 classes.
    Unlike in the original code, `num_classes` has an effect.

    Args:
        in_channels: Channels of the images, whose sides must be 32 pixels or more.
        width: Channels of the first convolutions, 64 in the literature; the hidden layers have 8 times as many units.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__(num_classes, width)
        layers: list[nn.Module] = []
        channels = in_channels
        for multiples in _STAGES:
            for multiple in multiples:
                convolution = nn.Conv2d(channels, multiple * width, kernel_size=3, padding=1)
                channels = multiple * width
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
            layers.append(nn.MaxPool2d(kernel_size=2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, num_classes),
        )
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        # At 32x32 the features are already 1x1; the mean is for larger images.
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits
