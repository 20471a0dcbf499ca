"""A distribution of two images, whose optimal denoiser has a closed form."""

import torch
from torch import nn

POINTS = torch.tensor([0.2, 0.9])
"""Brightness of the two images, in [0, 1]."""
WEIGHTS = torch.tensor([0.3, 0.7])
SHAPE = (1, 2, 2)
NULL = 2
"""Label for no class; the classes are the two images."""


def two_points(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, C, H, W) and labels (N,) of the distribution."""
    labels = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    return POINTS[labels].view(-1, 1, 1, 1).expand(-1, *SHAPE).clone(), labels


class ExactDenoiser(nn.Module):
    """E[noise | noisy image] of a process; at times between two steps by its noise level, as in Heun's sampler."""

    def __init__(self, process) -> None:
        super().__init__()
        self.log_sigmas = ((1 - process.alphas_cumprod) / process.alphas_cumprod).sqrt().log()

    def forward(self, x, t, labels=None):
        low = t.floor().long().clamp(max=len(self.log_sigmas) - 2)
        log_sigma = torch.lerp(self.log_sigmas[low], self.log_sigmas[low + 1], t.float() - low)
        signal = (1 / (1 + (2 * log_sigma).exp())).view(-1, 1)
        points, flat = 2 * POINTS - 1, x.flatten(1)
        distances = (flat[:, None, :] - signal.sqrt()[:, None] * points[None, :, None]).square().sum(2)
        log_weights = WEIGHTS.log().expand(len(x), 2)
        if labels is not None:
            known = nn.functional.one_hot(labels, 3)[:, :2].bool()
            log_weights = log_weights.masked_fill(~known & (labels != NULL)[:, None], -torch.inf)
        posterior = (log_weights - distances / (2 * (1 - signal))).softmax(1)
        mean = (posterior * points).sum(1, keepdim=True)
        return ((flat - signal.sqrt() * mean) / (1 - signal).sqrt()).view_as(x)
