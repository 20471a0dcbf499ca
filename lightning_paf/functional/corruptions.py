"""Corruptions of images, clipped to [0, 1]."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def gaussian(x: Tensor, level: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1] plus `level` times standard normal noise."""
    return (x + level * torch.randn_like(x)).clamp(0, 1)


def uniform(x: Tensor, level: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1] plus `level` times uniform noise in [0, 1]."""
    return (x + level * torch.rand_like(x)).clamp(0, 1)


def constant(x: Tensor, level: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1] plus `level`."""
    return (x + level).clamp(0, 1)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W) after a Gaussian filter of `sigma` pixels."""
    from torchvision.transforms.v2.functional import gaussian_blur

    width = 2 * min(round(3 * sigma), min(x.shape[2:]) - 1) + 1
    blurred: Tensor = gaussian_blur(x, [width, width], [sigma, sigma])
    return blurred.clamp(0, 1)


def contrast(x: Tensor, factor: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1] whose distance from their channel means is scaled."""
    mean = x.mean((2, 3), keepdim=True)
    return (mean + factor * (x - mean)).clamp(0, 1)


def jpeg(x: Tensor, quality: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1] after JPEG; with more than 3 channels, each alone."""
    from torchvision.transforms.v2.functional import jpeg as compressed

    levels = (255 * x).round().byte().cpu()
    single = levels if x.shape[1] in (1, 3) else levels.flatten(0, 1)[:, None]
    found: Tensor = compressed(single, int(quality))
    return (found.view_as(levels).float() / 255).to(x)


CORRUPTIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "constant": constant,
}
"""Corruptions of Chen, Jin, Shang (2022) by name."""

SEVERITIES: Mapping[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (gaussian, (0.04, 0.06, 0.08, 0.1, 0.15)),
    "uniform_noise": (uniform, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "gaussian_blur": (blur, (0.4, 0.6, 0.8, 1.0, 1.5)),
    "brightness": (constant, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg_compression": (jpeg, (80, 65, 50, 35, 20)),
}
"""Corruptions with five severities each, for images of about 32 pixels."""
