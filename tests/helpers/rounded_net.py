"""Defence with a straight-through gradient."""

import random
from types import SimpleNamespace

import torch
from torch import nn


class Round(torch.autograd.Function):
    """Rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return (x * 15).round() / 15

    @staticmethod
    def backward(ctx, grad):
        return grad


class RoundedNet(nn.Module):
    """A defence by discretised images before a linear classifier."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.activation = nn.ReLU()
        self.fc = nn.Linear(192, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.activation(self.flatten(Round.apply(x))))


class UnreliableNet(RoundedNet):
    """Random, with probabilities as its outputs."""

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=(super().forward(x) + 0.1 * random.random()).softmax(1))


class TupleNet(RoundedNet):
    """Two outputs."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(x), x
