"""Random augmentation of whole image batches (N, C, H, W), of any dtype, on the device where they lie.

Randomness comes from PyTorch's global generator of that device.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def random_crop(images: Tensor, padding: int) -> Tensor:
    """Pad with zeros on all four sides, then cut a window of the original size, placed anew for every image.

    Args:
        images: Images (N, C, H, W).
        padding: Pixels added on each side; every one of the (2 * padding + 1)² windows is equally likely.

    Returns:
        Images (N, C, H, W), contiguous.
    """
    n, _, height, width = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    sample = torch.arange(n, device=images.device)
    padded = pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    return padded[sample[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: Images (N, C, H, W).

    Returns:
        Images (N, C, H, W).
    """
    mirrored = torch.rand(images.shape[0], device=images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
