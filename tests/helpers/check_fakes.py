"""Small models of 8x8 digits, and parts that plant one fault each in front of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

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
    x: Tensor, y: Tensor, net: nn.Module | None = None, attack: PGD | None = None, spec: DatasetSpec = SPEC, epochs=5
) -> Classifier:
    """A small network trained on clean images, or on those of an attack; a second or two."""
    torch.manual_seed(0)
    model = Classifier(net or SmallConvNet(width=8), spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            seen = attack(model, x[index], y[index]) if attack else x[index]
            model.train()
            optimizer.zero_grad()
            cross_entropy(model(seen), y[index]).mean().backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


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


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, function, backward):
        ctx.replacement = backward
        return function(x)

    @staticmethod
    def backward(ctx, slope):
        return ctx.replacement(slope), None, None


def with_backward(backward: Callable[[Tensor], Tensor], function=torch.clone) -> Callable[[Tensor], Tensor]:
    """A function with a replaced backward pass."""
    return lambda x: _Replaced.apply(x, function, backward)


def eight_levels(x: Tensor) -> Tensor:
    return (7 * x).round() / 7


def lucky_start(x: Tensor) -> Tensor:
    """Pass the gradient only if the start has lightened the corner, which no step changes."""
    mask = (x[:, :, :1, :1] > 0.1).to(x.dtype).repeat(1, 1, *x.shape[2:])
    mask[:, :, 0, 0] = 0
    return with_backward(lambda slope: slope * mask)(x)


def batch_norm_net(running: bool = True, dropout: float = 0.0) -> nn.Sequential:
    """A small network with BatchNorm and dropout, for the faults that only these make possible."""
    norms = (nn.BatchNorm2d(16, track_running_stats=running) for _ in range(2))
    first, second = (nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1))
    body = nn.Sequential(first, next(norms), nn.ReLU(), second, next(norms), nn.ReLU(), nn.Flatten())
    return nn.Sequential(body, nn.Dropout(dropout), nn.Linear(256, 10))


def tie_net(kind: str) -> nn.Sequential:
    """A network with kinks wherever neighbouring pixels are equal."""
    conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
    if kind == "edges":
        conv.weight.data -= conv.weight.data.mean((1, 2, 3), keepdim=True)
    features = {
        "max-pooling": (conv, nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        "edges": (conv, nn.ReLU(), nn.AvgPool2d(2)),
        "median": (Fake(nn.Unfold(3, padding=1), after=_medians), conv, nn.AvgPool2d(2)),
    }[kind]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(128, 10))


def _medians(patches: Tensor) -> Tensor:
    return patches.median(dim=1).values.view(-1, 1, 8, 8)
