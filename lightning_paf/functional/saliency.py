"""Perturbation-based and gradient-based saliency maps."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_paf.functional.input_gradient import input_gradient
from lightning_paf.types import Forward


def gradient_saliency(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    """Absolute gradient (N, H, W) of log p_y, summed over channels.

    It has no graph; see `input_gradient` for the arguments.
    """
    with torch.enable_grad():
        return input_gradient(forward, x, y).detach().abs().sum(1)


@torch.no_grad()
def perturbation_saliency(
    forward: Forward, x: Tensor, grid: int = 8, window: float = 0.125, blur: float = 0.125
) -> Tensor:
    """Change of the prediction when the image is blurred around a pixel.

    At each point of a grid, the image is blended with its blurred copy under a Gaussian window. The saliency of the
    point is half the squared distance of the two probability vectors; it is interpolated bilinearly in between. Each
    point takes one forward pass. After Greydanus et al., "Visualizing and Understanding Atari Agents", ICML 2018.

    Args:
        forward: Images to logits (N, K).
        x: Images (N, C, H, W).
        grid: Points in each direction.
        window: Standard deviation of the window, as a fraction of the image's height.
        blur: Standard deviation of the blur, as a fraction of the image's height.

    Returns:
        (N, H, W), at least 0.
    """
    height, width = x.shape[-2:]
    blurred, usual = gaussian_blur(x, blur * height), forward(x).softmax(1)
    rows, columns = (_windows(length, grid, window * height, x) for length in (height, width))
    found = []
    for row in rows:
        for column in columns:
            blended = torch.lerp(x, blurred, torch.outer(row, column))
            found.append((forward(blended).softmax(1) - usual).square().sum(1) / 2)
    points = torch.stack(found, dim=1).view(-1, 1, grid, grid)
    return F.interpolate(points, (height, width), mode="bilinear", align_corners=False).squeeze(1)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images (N, C, H, W), with reflection at the border.

    `sigma` is in pixels.
    """
    for dim in (2, 3):
        radius = min(math.ceil(3 * sigma), x.shape[dim] - 1)
        distance = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        weights = torch.exp(-((distance / sigma) ** 2) / 2)
        shape, padding = [1, 1, 1, 1], [0, 0, 0, 0]
        shape[dim] = len(weights)
        first = 2 if dim == 2 else 0
        padding[first] = padding[first + 1] = radius
        flat = F.pad(x, padding, mode="reflect").flatten(0, 1)[:, None]
        with torch.autocast(x.device.type, enabled=False):  # images keep their precision
            x = F.conv2d(flat, (weights / weights.sum()).view(shape)).view(x.shape)
    return x


def most_salient(saliency: Tensor, fraction: float) -> Tensor:
    """Mask (N, H, W) of the most salient pixels.

    `fraction` of each image, in [0, 1]; of equal pixels, the first ones are selected.
    """
    order = saliency.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return (rank < round(fraction * order.shape[1])).view(saliency.shape)


def _windows(length: int, grid: int, sigma: float, like: Tensor) -> Tensor:
    """Gaussians (grid, length) of height 1, evenly spaced over the pixels."""
    pixel = torch.arange(length, device=like.device, dtype=like.dtype)
    centre = (torch.arange(grid, device=like.device, dtype=like.dtype) + 0.5) * (length / grid) - 0.5
    return torch.exp(-(((pixel - centre[:, None]) / sigma) ** 2) / 2)
