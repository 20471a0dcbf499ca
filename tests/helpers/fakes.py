"""Small models, images and files for many tests."""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn

from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec

CONFIGS = Path(__file__).parents[2] / "configs"


def spec(num_classes: int = 10, channels: int = 3) -> DatasetSpec:
    return DatasetSpec("fake", num_classes, 8, (0.5,) * channels, (0.25,) * channels)


def root_without_runs(folder: Path) -> Path:
    """A folder with `configs`, like the root of the repository, but without the `runs` of a developer."""
    (folder / "configs").symlink_to(CONFIGS)
    return folder


class TinyNet(nn.Module):
    """A convolution with BatchNorm, an activation and a linear head; about 100 parameters."""

    def __init__(self, num_classes: int = 10, channels: int = 3, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.activation(self.bn(self.conv(x))).mean((2, 3)))


class Branching(TinyNet):
    """A network that cannot be traced: its branches depend on the images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() < 0.3 else 1 - x)


class Noisy(TinyNet):
    """A network that must not be traced: its noise would become a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(10)


def tiny_classifier(num_classes: int = 10, channels: int = 3) -> Classifier:
    torch.manual_seed(0)
    return Classifier(TinyNet(num_classes, channels), spec(num_classes, channels))


def steady_classifier(num_classes: int = 10) -> Classifier:
    """Training mode with constant running statistics, so that attacks in eval mode are repeatable."""
    model = tiny_classifier(num_classes).train()
    model.net.bn.momentum = 0.0
    return model


def images(n: int = 8, num_classes: int = 10, channels: int = 3, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, channels, size, size, generator=generator)
    return x, torch.randint(num_classes, (n,), generator=generator)


def write_npz_dataset(root: Path, train: int = 64, test: int = 22, num_classes: int = 3, size: int = 8) -> Path:
    """A folder with train.npz and test.npz whose classes differ in brightness, so that they can be learned."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    for name, n in (("train", train), ("test", test)):
        label = np.arange(n) % num_classes
        base = 40 + 170 * label / (num_classes - 1)
        image = (base[:, None, None, None] + rng.integers(-20, 20, (n, size, size, 3))).astype(np.uint8)
        np.savez(root / f"{name}.npz", image=image, label=label.astype(np.int64))
    return root


class Pruning(ModelPruning):
    """ModelPruning with a function, which a configuration cannot hold."""

    def __init__(self) -> None:
        super().__init__("l1_unstructured")
