"""Networks and images for the benchmarks."""

import argparse
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import PGD
from lightning_paf.data.sources import RealData, read_dataset
from lightning_paf.nets import CifarResNet, SmallConvNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.swap import swap_activations
from lightning_paf.objectives import IBP
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
    data = _cifar(options).test
    return model, *tensors(data.images, data.labels)


def cifar_relu(options: argparse.Namespace) -> Case:
    """Three convolutions on the images in `--data`, with ReLU."""
    return _trained(_three_convolutions(), _cifar(options), options, steps=3, epochs=6)


def cifar_pssilu(options: argparse.Namespace) -> Case:
    """Three convolutions on the images in `--data`, with PSSiLU."""
    net = _three_convolutions()
    swap_activations(net, PSSiLU)
    return _trained(net, _cifar(options), options, steps=3, epochs=6)


def cifar_resnet(options: argparse.Namespace) -> Case:
    """ResNet-18 of width 16 on the images in `--data`, trained shortly."""
    net = Classifier(CifarResNet(18, width=16), dataset_spec("cifar10"))
    return _trained(net, _cifar(options), options, steps=2, epochs=2)


def cifar_certified(options: argparse.Namespace) -> Case:
    """Three convolutions on the images in `--data`, trained by interval bounds."""
    net = Classifier(_three_convolutions(), dataset_spec("cifar10"), normalize=False)
    return _trained(net, _cifar(options), options, steps=1, epochs=8, certified=True)


CASES = {
    f.__name__: f
    for f in (
        digits_relu, digits_pssilu, digits_standard, cifar_relu, cifar_pssilu, cifar_resnet, cifar_certified, resnet18
    )
}  # fmt: skip


def _digits(model: nn.Module, options: argparse.Namespace, steps: int = 7) -> Case:
    data = read_dataset(dataset_spec("digits"), Path("data"), download=False)
    return _trained(model, data, options, steps, epochs=12)


def _cifar(options: argparse.Namespace) -> RealData:
    """CIFAR-10, or `train.npz` and `test.npz` with ten classes."""
    spec = dataset_spec("npz", 10) if (options.data / "test.npz").is_file() else dataset_spec("cifar10")
    return read_dataset(spec, options.data, download=False)


def _three_convolutions() -> nn.Module:
    """Network of 98,998 parameters for images (N, 3, 32, 32) in [0, 1]."""
    widths = (3, 32, 64, 108)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * widths[-1], 10))


def _trained(
    model: nn.Module, data: RealData, options: argparse.Namespace, steps: int, epochs: int, certified: bool = False
) -> Case:
    """Train at `options.eps` for a minute: adversarially, plainly if `steps` is 0, or by interval bounds."""
    x, y = tensors(data.train.images, data.train.labels)
    torch.manual_seed(options.seed)
    objective, attack = IBP(0.5), partial(PGD, norm=options.norm, steps=max(1, steps))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    parts = [part for _ in range(epochs) for part in torch.randperm(len(x)).split(64)]
    for number, part in enumerate(parts):
        progress = number / len(parts)
        eps = float(options.eps) * (min(1.0, 2 * progress + 1e-3) if certified else 1)
        objective.on_epoch_start(0, progress)
        if certified:
            loss = objective(model, x[part], y[part], attack(eps, step_size=eps)).loss
        else:
            x_adv = attack(eps, step_size=eps / min(4, max(1, steps)))(model, x[part], y[part]) if steps else x[part]
            loss = nn.functional.cross_entropy(model(x_adv), y[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), *tensors(data.test.images, data.test.labels)


def tensors(images: NDArray, labels: NDArray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() / 255, torch.from_numpy(labels).long()


@torch.no_grad()
def clean_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Fraction of correctly classified images."""
    with frozen(model):
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250), strict=True))
    return right / len(x)
