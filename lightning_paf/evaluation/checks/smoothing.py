"""A model whose derivative is measured instead of computed."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

_CELLS = 8


class MeasuredGradient(nn.Module):
    """Has the outputs of a model, and as derivative that of the model smoothed by Gaussian noise.

    The derivative of the smoothed model needs outputs only: the mean of `u (f(x + s u) - f(x - s u)) / 2 s` over
    Gaussian `u` (Nesterov & Spokoiny 2017). So it passes layers without a useful gradient: rounding, detached parts,
    saturated or rugged ones. It is noisy: `pairs` differences see a share of about `sqrt(pairs / dimensions)` of the
    gradient, which the steps of an attack add up. So the noise is constant on tiles, 8 x 8 of them: gradients of
    neighbouring pixels agree (Ilyas et al. 2019), and the dimensions of the tiles are few.

    Args:
        model: What to stand in for, in eval mode at the call.
        spread: Standard deviation `s` of the noise in each pixel.
        pairs: Differences for one derivative, two forward passes each.
    """

    def __init__(self, model: nn.Module, spread: float, pairs: int = 10) -> None:
        super().__init__()
        self.model = model
        self.spread = spread
        self.pairs = pairs

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits."""
        logits: Tensor = _Measured.apply(x, self.model, self.spread, self.pairs)
        return logits


class _Measured(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, model: nn.Module, spread: float, pairs: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.model, ctx.spread, ctx.pairs = model, spread, pairs
        logits: Tensor = model(x)
        return logits

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        gradient = torch.zeros_like(x)
        for _ in range(ctx.pairs):
            noise = _tiles(x)
            change = ctx.model(x + ctx.spread * noise) - ctx.model(x - ctx.spread * noise)
            along = (slopes[0] * change).sum(dim=1) / (2 * ctx.spread * ctx.pairs)
            gradient += along.view(-1, *[1] * (x.dim() - 1)) * noise
        return gradient, None, None, None


def _tiles(x: Tensor) -> Tensor:
    """Noise that is constant on tiles, shaped like images (N, C, H, W)."""
    height, width = x.shape[-2:]
    coarse = torch.randn(*x.shape[:2], min(height, _CELLS), min(width, _CELLS), device=x.device, dtype=x.dtype)
    return interpolate(coarse, size=(height, width))


def pixel_spread(eps: float, norm: str, pixels: int) -> float:
    """Noise half as large as the threat model allows, as a standard deviation in each pixel."""
    return eps / 2 if norm == "linf" else eps / 2 / math.sqrt(pixels)
