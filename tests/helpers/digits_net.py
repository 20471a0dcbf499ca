"""A small network trained on the 8x8 digits in a second."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


@cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """The network in eval mode, and held-out digits (N, 1, 8, 8) that it classifies correctly."""
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(4):
        for rows in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            noisy = x[rows] + 0.1 * torch.randn_like(x[rows])
            nn.functional.cross_entropy(net(noisy), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    net.eval().requires_grad_(False)
    x, y = x[1200:], y[1200:]
    correct = net(x).argmax(1) == y
    assert correct.float().mean() > 0.85
    return net, x[correct], y[correct]


def digits(n):
    """The network, and the first n digits."""
    net, x, y = trained()
    return net, x[:n], y[:n]


class Recorder(nn.Module):
    """Keeps the images of all forward passes; has a method `exact` if one is given."""

    def __init__(self, model, exact=None):
        super().__init__()
        self.model, self.images = model, []
        if exact is not None:
            self.exact = exact

    @property
    def seen(self):
        """Number of images so far."""
        return sum(map(len, self.images))

    def forward(self, x):
        self.images.append(x.detach().clone())
        return self.model(x)


def lambda_module(function):
    """A network that computes a function."""

    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    return Net()
