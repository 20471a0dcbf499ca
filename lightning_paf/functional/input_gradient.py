"""Gradient of a classifier's loss by its input."""

import torch
from torch import Tensor

from lightning_paf.functional.losses import cross_entropy
from lightning_paf.types import Forward


def input_gradient(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of each image's cross-entropy at the image, with its graph.

    For labels this is minus the gradient of log p_y.

    Args:
        forward: Images to logits (N, K).
        x: Images (N, C, H, W).
        y: Labels (N,), or a distribution over the classes (N, K).
    """
    x = x.detach().requires_grad_()
    # Of the sum, which is that of each image where the network treats images alone.
    (gradient,) = torch.autograd.grad(cross_entropy(forward(x), y).sum(), x, create_graph=True)
    return gradient
