"""Gradients of single logits."""

import torch
from torch import Tensor

from lightning_paf.functional.geometry import finite_gradient
from lightning_paf.types import Forward


def logit_gradients(forward: Forward, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K), and gradients (N, k, C, H, W) of the logits of `classes` (N, k).

    Both are without a graph; they take one forward and k backward passes.
    """
    x = x.detach().requires_grad_()
    logits: Tensor = forward(x)
    wanted = logits.gather(1, classes).sum(0)
    gradients = [
        finite_gradient(torch.autograd.grad(one, x, retain_graph=rank + 1 < len(wanted))[0])
        for rank, one in enumerate(wanted.unbind())
    ]
    return logits.detach(), torch.stack(gradients, dim=1)
