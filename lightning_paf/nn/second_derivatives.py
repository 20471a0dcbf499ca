"""Check that a network can be differentiated twice."""

import torch

from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.utils.terminal import clause


def require_second_derivatives(model: Classifier, example: torch.Tensor, needed_by: str) -> None:
    """Check that the network is twice differentiable.

    Compiled networks and those with fused attention are not.

    Args:
        model: Model to test in eval mode; restored afterwards.
        example: Images (N, C, H, W). A network that cannot process them is not checked.
        needed_by: Name of the objective that differentiates a gradient, for the message.

    Raises:
        ValueError: A layer's gradient has no derivative.
    """
    x = example.detach().requires_grad_()
    with torch.enable_grad(), frozen(model):
        try:
            # The softmax makes the gradient depend on x even if the network is piecewise linear.
            value = model(x).logsumexp(dim=1).sum()
        except (RuntimeError, AssertionError):
            return
        try:
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            torch.autograd.grad(gradient.square().sum(), x)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{type(model.net).__name__} must be twice differentiable for {needed_by}, got: {clause(error)}. "
                "Pass another --model.net, not compiled; for attention in timm, set TIMM_FUSED_ATTN=0."
            ) from error
