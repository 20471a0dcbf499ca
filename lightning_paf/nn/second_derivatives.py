"""Check that a network can be differentiated twice."""

import torch

from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen


def require_second_derivatives(model: Classifier, example: torch.Tensor, needed_by: str) -> None:
    """Refuse a network with a layer whose gradient has no derivative, such as fused attention, or a compiled network.

    Args:
        model: Tried out in eval mode and left as found.
        example: Images (N, C, H, W). A network that cannot process them is not checked.
        needed_by: What differentiates a gradient, for the message.

    Raises:
        ValueError: There is such a layer.
    """
    x = example.detach().requires_grad_()
    with torch.enable_grad(), frozen(model):
        try:
            # The softmax makes the gradient depend on x also where the network is piecewise linear.
            value = model(x).logsumexp(dim=1).sum()
        except (RuntimeError, AssertionError):
            return
        try:
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            torch.autograd.grad(gradient.square().sum(), x)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{needed_by} differentiates a gradient, but {type(model.net).__name__} has a layer that cannot "
                f"({error}). Choose another --model.net, not compiled; for attention in timm, set TIMM_FUSED_ATTN=0."
            ) from error
