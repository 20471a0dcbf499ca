"""Models with one planted disease each, around a healthy classifier of 8x8 digits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_paf.attacks import PGD
from lightning_paf.data.sources import read_dataset
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nets.small import SmallConvNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec, dataset_spec

EPS = 0.15
SPEC = dataset_spec("digits")


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 1, 8, 8) in [0, 1] with labels."""
    data = read_dataset(SPEC, None, download=False)
    parts = []
    for images in (data.train, data.test):
        parts += [torch.from_numpy(images.images).permute(0, 3, 1, 2) / 255, torch.from_numpy(images.labels)]
    return tuple(parts)


def trained(
    x: Tensor,
    y: Tensor,
    *,
    attack: PGD | None = None,
    net: nn.Module | None = None,
    spec: DatasetSpec = SPEC,
    epochs: int = 5,
    seed: int = 0,
) -> Classifier:
    """A small network trained on clean images, or on those of an attack; a few seconds."""
    torch.manual_seed(seed)
    model = Classifier(net or SmallConvNet(width=8), spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for places in torch.randperm(len(x)).split(64):
            seen = attack(model, x[places], y[places]) if attack else x[places]
            model.train()
            optimizer.zero_grad()
            cross_entropy(model(seen), y[places]).mean().backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def training_attack() -> PGD:
    return PGD(EPS, step_size=EPS / 2, steps=3)


class Fake(nn.Module):
    """A model with something before it and something after it."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


class _OtherSlope(torch.autograd.Function):
    """A function whose backward pass is made up."""

    @staticmethod
    def forward(ctx, x, function, backward):
        ctx.made_up = backward
        return function(x)

    @staticmethod
    def backward(ctx, slope):
        return ctx.made_up(slope), None, None


def no_gradient(x: Tensor) -> Tensor:
    return _OtherSlope.apply(x, torch.clone, torch.zeros_like)


def nan_gradient(x: Tensor) -> Tensor:
    """A square root of zero, as in a norm of black pixels."""
    return x + 0 * (x - x).sqrt()


def detached(x: Tensor) -> Tensor:
    return x.detach()


def eight_levels(x: Tensor) -> Tensor:
    return (7 * x).round() / 7


def eight_levels_straight_through(x: Tensor) -> Tensor:
    return _OtherSlope.apply(x, eight_levels, torch.clone)


def rare_gradient(x: Tensor) -> Tensor:
    """Lets the gradient of one image in ten pass, drawn anew at each step."""
    return _OtherSlope.apply(x, torch.clone, lambda slope: slope * (torch.rand(len(slope), 1, 1, 1) < 0.1))


def lucky_start(x: Tensor) -> Tensor:
    """Lets the gradient pass where the start has lightened the corner, which no step changes."""
    mask = (x[:, :, :1, :1] > 0.1).to(x.dtype).repeat(1, 1, *x.shape[2:])
    mask[:, :, 0, 0] = 0
    return _OtherSlope.apply(x, torch.clone, lambda slope: slope * mask)


def ripples(x: Tensor) -> Tensor:
    """Waves far smaller than eps, whose slope outshouts that of the image."""
    return x + 0.02 * torch.sin(300 * x)


def input_noise(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


def constant_dropout(x: Tensor) -> Tensor:
    return F.dropout(x, 0.3, training=True)


def large(z: Tensor) -> Tensor:
    return 1e4 * z


def probabilities(z: Tensor) -> Tensor:
    return z.softmax(dim=1)


class BatchNormNet(nn.Module):
    """A small network with BatchNorm and dropout, for the mistakes that only these make possible."""

    def __init__(self, running: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16, track_running_stats=running),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16, track_running_stats=running),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))
