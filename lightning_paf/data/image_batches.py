"""Random augmentation of image batches (N, C, H, W) of any dtype, on their device.

Random numbers come from PyTorch's global generator of that device. Results are in channels-last layout, where the
pixels of a row are contiguous, so rows and images are copied and never single pixels.
"""

import torch
from torch import Tensor


def as_floats(images: Tensor) -> Tensor:
    """Images (N, C, H, W) float32 in [0, 1] of uint8 arrays (N, H, W, C)."""
    return images.permute(0, 3, 1, 2).float() / 255


def random_crop(images: Tensor, padding: int) -> Tensor:
    """Pad with zeros on all four sides, then crop at a random position per image.

    Args:
        images: Images (N, C, H, W).
        padding: Pixels added on each side; every one of the (2 * padding + 1)² windows is equally likely.

    Returns:
        Images (N, C, H, W), channels-last.
    """
    n, channels, height, width = images.shape
    padded = images.new_zeros(n, height + 2 * padding, width + 2 * padding, channels)
    padded[:, padding : padding + height, padding : padding + width] = images.permute(0, 2, 3, 1)
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), device=images.device)
    sample = torch.arange(n, device=images.device)[:, None]
    rows = sample * padded.shape[1] + top + torch.arange(height, device=images.device)
    first = rows * padded.shape[2] + left  # index of the first pixel of each row of a window (N, H)
    runs = padded.flatten().unfold(0, width * channels, channels)  # a view: `width` pixels from each pixel on
    return runs.index_select(0, first.flatten()).view(n, height, width, channels).permute(0, 3, 1, 2)


def random_flip(images: Tensor) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: Images (N, C, H, W).

    Returns:
        Images (N, C, H, W), channels-last.
    """
    return select_images(torch.rand(images.shape[0], device=images.device) < 0.5, images.flip(-1), images)


def random_colours(images: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation of each image by random factors.

    The three changes are made in a random order, the same for all images of the batch. Each moves the pixels of an
    image to `r + f (x - r)` with a factor f from U(1 - strength, 1 + strength), and clips them. The reference r is
    black for the brightness, the mean of the grey image for the contrast, and the grey image for the saturation.

    Args:
        images: Images (N, C, H, W), uint8. Grey is the luma of three channels (ITU-R BT.601), or their mean.
        strength: Largest change of a factor, in [0, 1].

    Returns:
        Images (N, C, H, W), uint8, in the layout of `images`.
    """
    x = images.float()
    luma = (0.299, 0.587, 0.114) if x.shape[1] == 3 else [1 / x.shape[1]] * x.shape[1]
    weights = x.new_tensor(luma).view(1, -1, 1, 1)
    for change in torch.randperm(3).tolist():
        grey = (weights * x).sum(1, keepdim=True)
        reference = (0.0, grey.mean((2, 3), keepdim=True), grey)[change]
        factor = 1 + strength * (2 * torch.rand(len(x), 1, 1, 1, device=x.device) - 1)
        x = (reference + factor * (x - reference)).clamp_(0, 255)
    return x.round_().to(images.dtype)


def select_images(condition: Tensor, images: Tensor, other: Tensor) -> Tensor:
    """Choose one of two images for each index of the batch, faster than `torch.where`.

    Args:
        condition: bool (N,): True takes from `images`, False from `other`.
        images: Images (N, C, H, W).
        other: Images (N, C, H, W).

    Returns:
        Images (N, C, H, W), channels-last.
    """
    both = torch.cat([other.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)])
    n = len(condition)
    return both.index_select(0, torch.arange(n, device=condition.device) + n * condition).permute(0, 3, 1, 2)
