"""Input gradient of a classifier's loss."""

import torch
from torch import Tensor

from lightning_paf.functional.losses import cross_entropy
from lightning_paf.types import Forward


def input_gradient(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of the cross-entropy by each image, with its graph.

    For labels this is minus the gradient of log p_y.

    Args:
        forward: Images to logits (N, K).
        x: Images (N, C, H, W).
        y: Labels (N,), or a distribution over the classes (N, K).
    """
    x = x.detach().requires_grad_()
    # The gradient of the sum is that of each image, if the network processes images independently.
    (gradient,) = torch.autograd.grad(cross_entropy(forward(x), y).sum(), x, create_graph=True)
    return gradient
