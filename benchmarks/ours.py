"""Our training step for the benchmarks, and the sizes of its networks."""

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from measure import parser, prepare
from torch import Tensor, nn

from lightning_paf.attacks import PGD
from lightning_paf.nets import CifarResNet, WideResNet
from lightning_paf.nn.activations import Activation, PSSiLU
from lightning_paf.nn.parameter_groups import parameter_groups
from lightning_paf.objectives import AdversarialCE
from lightning_paf.speed.options import Speed
from lightning_paf.tasks.classification import RobustModule

NETS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": lambda width: CifarResNet(18, width=width),
    "wrn28_10": lambda width: WideResNet(28, width=width),
    "wrn10": lambda width: WideResNet(10, width=width),  # small enough to be compiled on a CPU
}
FULL_WIDTH = {"resnet18": 64, "wrn28_10": 10, "wrn10": 10}
CPU_WIDTH = {"resnet18": 32, "wrn28_10": 1, "wrn10": 1}
QUICK_WIDTH = {"resnet18": 8, "wrn28_10": 1, "wrn10": 1}


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options of a step; `sizes` chooses the missing defaults for the device."""
    parser.add_argument("--net", choices=NETS, default="resnet18")
    parser.add_argument("--width", type=int, help="width of the network; full on CUDA, half for ResNet-18 on CPU")
    parser.add_argument("--batch", type=int, help="images; 512 on CUDA, 64 on CPU")
    parser.add_argument("--steps", type=int, help="PGD steps (default: 10)")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="precision of our steps")
    parser.add_argument("--compile", action="store_true", help="compile our networks (`--model.speed.compile true`)")


def sizes(options: argparse.Namespace) -> torch.device:
    """Fill in the options that depend on others, and prepare the device."""
    cuda = options.device == "cuda"
    width = (QUICK_WIDTH if options.quick else FULL_WIDTH if cuda else CPU_WIDTH)[options.net]
    options.width = options.width or width
    options.batch = options.batch or (8 if options.quick else 512 if cuda else 64)
    options.steps = options.steps or (2 if options.quick else 10)
    options.repeats = min(options.repeats, 2) if options.quick else options.repeats
    return prepare(options)


def start(description: str | None) -> tuple[argparse.Namespace, torch.device]:
    """Parse the options of a benchmark without further ones, and prepare the device."""
    options = parser(description, repeats=5)
    add_sizes(options)
    chosen = options.parse_args()
    device = sizes(chosen)
    torch.manual_seed(0)
    return chosen, device


def attack(steps: int) -> PGD:
    """The usual linf attack of training; fewer steps, as with `--quick`, are longer."""
    return PGD() if steps == 10 else PGD(step_size=max(2 / 255, 8 / 255 / steps), steps=steps)


def module(
    options: argparse.Namespace, activation: Activation | None = None, speed: Speed | None = None
) -> RobustModule:
    """The training module of the recipes for PGD adversarial training, with PSSiLU by default."""
    net = NETS[options.net](options.width)
    activation = PSSiLU() if activation is None else activation
    speed = Speed(compile=options.compile) if speed is None else speed
    with quiet():
        return RobustModule(net, attack(options.steps), AdversarialCE(), activation=activation, speed=speed)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings about a module without a trainer."""
    with warnings.catch_warnings():
        for message in ("Attribute .* is already saved during checkpointing", ".*reference is not registered"):
            warnings.filterwarnings("ignore", message=message)
        yield


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Autocast of the trainer's `bf16-mixed` and `32-true`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class OurStep:
    """One training step as the trainer runs it: `training_step`, backward pass, clipping, optimiser.

    Logging needs a trainer and is left out; benchmarks/epoch.py has it.
    """

    def __init__(self, module: RobustModule, device: torch.device, precision: str) -> None:
        self.module, self.device, self.precision = module.to(device).train(), device, precision
        module.speed.prepare(module.model)
        self.optimizer = module.optimizer(parameter_groups(module, module.decay))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Update the weights with images (N, C, H, W) and labels (N,), and return the loss."""
        with autocast(self.precision, self.device), quiet():
            loss = self.module.training_step((x, y), 0)
        self.optimizer.zero_grad()
        loss.backward()
        for layer in self.module.modules():
            if isinstance(layer, Activation):
                layer.clip_gradients()
        self.optimizer.step()
        return loss.detach()


def images(options: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of noise in the layout of the data module (channels-last), and labels."""
    x = torch.rand(options.batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(10, (options.batch,), device=device)
