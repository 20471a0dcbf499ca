"""Networks and images for the benchmarks."""

import argparse
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import PGD
from lightning_paf.data.sources import read_dataset
from lightning_paf.nets import SmallConvNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.swap import swap_activations
from lightning_paf.specs import dataset_spec

Case = tuple[nn.Module, Tensor, Tensor]
"""A network, and the images and labels of its test set."""


def digits_relu(options: argparse.Namespace) -> Case:
    """A small network on the digits, with ReLU."""
    return _digits(SmallConvNet(in_channels=1, num_classes=10), options)


def digits_pssilu(options: argparse.Namespace) -> Case:
    """A small network on the digits, with PSSiLU."""
    net = SmallConvNet(in_channels=1, num_classes=10)
    swap_activations(net, PSSiLU)
    return _digits(net, options)


def digits_standard(options: argparse.Namespace) -> Case:
    """A small network on the digits, trained on clean images; almost no image is robust."""
    return _digits(SmallConvNet(in_channels=1, num_classes=10), options, steps=0)


def resnet18(options: argparse.Namespace) -> Case:
    """The CIFAR-10 network of the reference package; `--data` holds the images."""
    import pyautoattack
    from pyautoattack.examples.resnet import ResNet18

    model = ResNet18()
    weights = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    spec = dataset_spec("npz", 10) if (options.data / "test.npz").is_file() else dataset_spec("cifar10")
    data = read_dataset(spec, options.data, download=False).test
    return model, *tensors(data.images, data.labels)


CASES = {f.__name__: f for f in (digits_relu, digits_pssilu, digits_standard, resnet18)}


def _digits(model: nn.Module, options: argparse.Namespace, steps: int = 7) -> Case:
    """Train for half a minute, adversarially unless `steps` is 0."""
    data = read_dataset(dataset_spec("digits"), Path("data"), download=False)
    x, y = tensors(data.train.images, data.train.labels)
    torch.manual_seed(options.seed)
    eps = float(options.eps)
    attack = PGD(eps, norm=options.norm, step_size=eps / 4, steps=max(1, steps))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(12):
        for part in torch.randperm(len(x)).split(64):
            x_adv = attack(model, x[part], y[part]) if steps else x[part]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_adv), y[part]).backward()
            optimizer.step()
    return model, *tensors(data.test.images, data.test.labels)


def tensors(images: NDArray, labels: NDArray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() / 255, torch.from_numpy(labels).long()


@torch.no_grad()
def clean_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Fraction of correctly classified images."""
    with frozen(model):
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250), strict=True))
    return right / len(x)
