"""Networks as other programs have them, and the files that these programs write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.nets import CifarResNet, DMPreActResNet, DMWideResNet, WideResNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics that leave no layer without an effect; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            module.num_batches_tracked.fill_(7)
    for name, parameter in net.named_parameters():
        if name.endswith((".alpha", ".beta")):
            parameter.data.fill_(1.7 if name.endswith("alpha") else 0.2)
    return net.eval()


def wide(activation: bool = True) -> nn.Module:
    net = WideResNet(depth=10, width=1)
    if activation:
        swap_activations(net, PSSiLU)
    return randomised(net)


def resnet() -> nn.Module:
    net = CifarResNet(width=4)
    swap_activations(net, PSSiLU)
    return randomised(net)


def dm_wide(seed: int = 0) -> nn.Module:
    return randomised(DMWideResNet(depth=10, width=1), seed)


def dm_preact() -> nn.Module:
    return randomised(DMPreActResNet(width=4))


class Normalize(nn.Module):
    """As in PAF_AT: the statistics are buffers, and so in the state dict."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def shifted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other weights of the same network; each shared tensor stays one value."""
    return {key: value * 1.1 if value.is_floating_point() else value for key, value in state.items()}


def in_parallel(net: nn.Module) -> dict[str, Tensor]:
    """State dict of DataParallel(Sequential(net)): every key starts with `module.0.`."""
    return nn.DataParallel(nn.Sequential(net)).state_dict()


Writer = Callable[[nn.Module], Any]
FAMILIES: dict[str, tuple[Callable[[], nn.Module], Writer]] = {
    "raw": (dm_wide, lambda net: net.state_dict()),
    "raw, preact": (dm_preact, lambda net: net.state_dict()),
    "robust_paf": (
        wide,
        lambda net: {
            "epoch": 3,
            "arch": "wrn",
            "state_dict": {f"module.{key}": value for key, value in net.state_dict().items()},
            "best_prec1": 61.5,
            "swadict": {},
        },
    ),
    "robust_paf with swa": (
        resnet,
        lambda net: {
            "state_dict": {f"module.{key}": value for key, value in shifted(net.state_dict()).items()},
            "swadict": {f"module.{key}": value.float() for key, value in net.state_dict().items()},
        },
    ),
    "wang2023": (
        dm_wide,
        lambda net: {
            "model_state_dict": in_parallel(net),
            "unaveraged_model_state_dict": shifted(in_parallel(net)),
            "epoch": 400,
            "scheduler_state_dict": {"last_epoch": 3},
        },
    ),
    "ddp of a compiled net": (
        dm_wide,
        lambda net: {"model": {f"module._orig_mod.0.{key}": value for key, value in net.state_dict().items()}},
    ),
    "net": (wide, lambda net: {"net": net.state_dict(), "acc": 0.8, "epoch": 9}),
    "last": (wide, lambda net: {"last": net.state_dict(), "best": shifted(net.state_dict())}),
    "lightning": (
        wide,
        lambda net: {
            "pytorch-lightning_version": "2.4.0",
            "state_dict": {f"net.{key}": value for key, value in net.state_dict().items()}
            | {"criterion.weight": torch.ones(10)},
        },
    ),
    "ours": (
        resnet,
        lambda net: {
            "pytorch-lightning_version": "2.6.6",
            "state_dict": {f"model.net.{key}": value for key, value in net.state_dict().items()}
            | {"objective.net.weight": torch.ones(1)},
            "current_model_state": {f"model.net.{key}": v for key, v in shifted(net.state_dict()).items()},
        },
    ),
    "averaged model": (
        dm_wide,
        lambda net: {"ema": torch.optim.swa_utils.AveragedModel(net).state_dict(), "model": shifted(net.state_dict())},
    ),
    "without counters": (
        dm_wide,
        lambda net: {key: value for key, value in net.state_dict().items() if "num_batches" not in key},
    ),
    "one name for a shared tensor": (
        wide,
        lambda net: {
            key: value
            for key, value in net.state_dict().items()
            if not key.endswith((".alpha", ".beta")) or key.startswith("activation.")
        },
    ),
    "half precision": (dm_wide, lambda net: net.half().state_dict()),
}


def write(path: Path, name: str) -> nn.Module:
    """Write a file of a family, and return the network that it is of."""
    make, content = FAMILIES[name]
    net = make()
    torch.save(content(net), path)
    return net.float()
