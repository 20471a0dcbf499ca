"""A network that decodes features into images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Decoder of features: linear layer, two transposed and two normal convolutions.

    Similar to the generators of Zhou et al. (2022, LADDER), without their batch norm.

    Args:
        num_features: Width of the features.
        shape: Channels, height and width of the images.
        width: Channels of the middle layers; the first layer has twice as many.
    """

    def __init__(self, num_features: int, shape: Sequence[int], width: int = 64) -> None:
        super().__init__()
        channels, self.height, self.size = shape[0], shape[1], shape[2]
        coarse = (2 * width, -(-self.height // 4), -(-self.size // 4))  # rounded up, and cropped at the end
        self.spread = nn.Sequential(
            nn.Linear(num_features, coarse[0] * coarse[1] * coarse[2]), nn.ReLU(), nn.Unflatten(1, coarse)
        )
        self.paint = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, channels, kernel_size=3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Features (N, num_features) to images (N, C, H, W) in [0, 1]."""
        images: Tensor = self.paint(self.spread(z))
        return images[:, :, : self.height, : self.size]


def train_generator(
    generator: Generator,
    features: Tensor,
    images: Tensor,
    *,
    epochs: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    progress: Callable[[str], object] = lambda _: None,
) -> float:
    """Minimise the mean squared error with Adam; return that of the last epoch.

    Args:
        generator: On the device to train on.
        features: (N, num_features), on any device.
        images: uint8 (N, C, H, W), on any device.
        epochs: Passes over the images.
        batch_size: Images per step.
        lr: Learning rate.
        progress: Called with a line for each epoch.
    """
    device = next(generator.parameters()).device
    optimizer = torch.optim.Adam(generator.parameters(), lr)
    total = 0.0
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.split(torch.randperm(len(features)), batch_size):
            target = images[rows].to(device).float() / 255
            loss = (generator(features[rows].to(device)) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows) / len(features)
        progress(f"generator: epoch {epoch + 1} of {epochs}, squared error {total:.4f}")
    return total
