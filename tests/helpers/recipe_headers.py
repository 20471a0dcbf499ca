"""Commands and cost in the header of a recipe, and the cost computed from its objects."""

import re
import shlex
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from helpers.fakes import images, spec
from lightning_paf.data.samplers import batches_per_epoch
from lightning_paf.nets import NODE, GatedResNet, SmallConvNet
from lightning_paf.nets.ode.block import ODEBlock
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives import ELBO, Certified, Natural

CIFAR_TRAINING_IMAGES = 50_000


def commands(text: str) -> list[list[str]]:
    """Words after `lightning-paf` of every command in the header of a recipe; loops have their first iteration."""
    found = []
    for line in re.findall(r"^# \w+: +(.*lightning-paf .*)$", text, re.MULTILINE):
        loop = re.fullmatch(r"for (\w+) in (\S+) .*; do (.*); done", line)
        command = loop[3].replace(f"${loop[1]}", loop[2]) if loop else line
        found.append(shlex.split(command)[1:])
    return found


def option(words: list[str], key: str) -> str:
    return words[words.index(key) + 1]


def cost_in_header(text: str) -> tuple[float, float]:
    """Image forwards and EFLOP in the header of a recipe; 0 if it has no such line."""
    found = re.search(r"^# Cost \(derived\): ([\d.e]+) image forwards = ([\d.]+) EFLOP", text, re.MULTILINE)
    return (float(found[1]), float(found[2])) if found else (0.0, 0.0)


def cost_line(forwards: float, exaflop: float) -> str:
    """The line of a header, with two significant digits of each number."""
    images_passed = f"{forwards:.1e}".replace("e+0", "e").replace("e+", "e")
    flop = np.format_float_positional(exaflop, precision=2, fractional=False, trim="-")
    return f"# Cost (derived): {images_passed} image forwards = {flop} EFLOP; hours not measured."


def costs(module, data, epochs: int) -> tuple[float, float]:
    """Image forwards and EFLOP of a training of this `RobustModule` on these data."""
    optimizer = module._built_optimizer()
    evaluations = getattr(optimizer, "evaluations", 1)  # per step of the optimiser
    linearised = hasattr(optimizer, "sensitivity")
    objective, model = module.objective, module.model.train()
    if isinstance(objective, ELBO):  # one pass to the largest of its times, without their interpolation
        model.net, objective = NODE(in_channels=3, t_end=objective.horizon), Natural()
    forwards = evaluations * passes(objective, module.attack, linearised) * images_per_epoch(data) * epochs
    device = "meta"
    if any(isinstance(part, ODEBlock) for part in model.modules()):  # a solver reads values
        device, model = "cpu", model.to_empty(device="cpu")
    with torch.device(device), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 32, 32))  # two, for BatchNorm; an ensemble makes one pass in training
    return forwards, forwards * counter.get_total_flops() / 2 / 1e18


def images_per_epoch(data) -> int:
    real = CIFAR_TRAINING_IMAGES - data.val_size
    return data.batch_size * batches_per_epoch(real, data.batch_size, data.real_fraction, data.epoch)


class Convolutions(TorchDispatchMode):
    """Counts convolutions; each of their two gradients costs as much as a forward pass."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.count += 1
        if func is torch.ops.aten.convolution_backward.default:
            self.count += sum(args[-1][:2])
        return func(*args, **(kwargs or {}))


def bind(objective, model) -> None:
    """Bind an objective to a small network, as in the middle of a training."""
    for part in objective.modules():
        if hasattr(part, "standard"):  # the checkpoint of the recipe's first command
            part.standard = Path(tempfile.mkdtemp(), "standard.ckpt")
            torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, part.standard)
        if hasattr(part, "embedding"):  # a layer of the recipe's network
            part.embedding = None
        if hasattr(part, "window"):  # a block of the recipe's network
            part.bind = part.objective.bind
    objective.bind(model)
    objective.on_epoch_start(1, 0.5)


def passes(objective, attack, linearised=False) -> float:
    """Cost of a training step in forward passes, counted on a small network."""
    certified = isinstance(objective, Certified)  # gates have no bounds
    gates = {"layers": ["features.5", "features.7"]}  # no convolutions
    net = SmallConvNet(3) if certified else GatedResNet(SmallConvNet(3), **gates)
    model, (x, y) = Classifier(net, spec()).train(), images(2, size=16)
    bind(objective, model)
    with Convolutions() as once:
        model(x)
    with Convolutions() as step:
        for number in range(objective.steps_per_batch):
            objective.begin_step(number)
            objective(model, x, y, attack).loss.backward()
            if linearised:
                objective.slope(model, {p: torch.ones_like(p) for p in model.parameters()})
    return step.count / once.count
