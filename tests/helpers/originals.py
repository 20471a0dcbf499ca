"""Networks of other programs, and the checkpoint files that these programs write."""

from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_paf.nets import CifarResNet, DMPreActResNet, DMWideResNet, WideResNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def randomised(net: nn.Module, activation: bool = False) -> nn.Module:
    """Set weights and statistics with which every layer has an effect; in eval mode."""
    if activation:
        swap_activations(net, lambda: PSSiLU(alpha=1.7, beta=0.2))
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            module.num_batches_tracked.fill_(7)
    return net.eval()


def wide(activation: bool = True) -> nn.Module:
    return randomised(WideResNet(depth=10, width=1), activation)


def resnet() -> nn.Module:
    return randomised(CifarResNet(width=4), activation=True)


def dm_wide() -> nn.Module:
    return randomised(DMWideResNet(depth=10, width=1))


def dm_preact() -> nn.Module:
    return randomised(DMPreActResNet(width=4))


class Normalize(nn.Module):
    """Normalisation as in PAF_AT, with statistics in the state dict."""

    def __init__(self, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def renamed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def shifted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other weights of the same network; each shared tensor stays one value."""
    return {key: value * 1.1 if value.is_floating_point() else value for key, value in state.items()}


FAMILIES = {
    "raw": (dm_wide, lambda state: state),
    "raw, preact": (dm_preact, lambda state: state),
    "robust_paf": (wide, lambda state: {"epoch": 3, "state_dict": renamed(state, "module."), "swadict": {}}),
    "robust_paf with swa": (
        resnet,
        lambda state: {"state_dict": renamed(shifted(state), "module."), "swadict": renamed(state, "module.")},
    ),
    "wang2023": (
        dm_wide,
        lambda state: {
            "model_state_dict": renamed(state, "module.0."),
            "unaveraged_model_state_dict": renamed(shifted(state), "module.0."),
            "scheduler_state_dict": {"last_epoch": 3},
        },
    ),
    "ddp of a compiled net": (dm_wide, lambda state: {"model": renamed(state, "module._orig_mod.0.")}),
    "net": (wide, lambda state: {"net": state, "acc": 0.8, "epoch": 9}),
    "last": (wide, lambda state: {"last": state, "best": shifted(state)}),
    "lightning": (
        wide,
        lambda state: {
            "pytorch-lightning_version": "2.4.0",
            "state_dict": renamed(state, "net.") | {"criterion.weight": torch.ones(10)},
        },
    ),
    "ours": (
        resnet,
        lambda state: {
            "pytorch-lightning_version": "2.6.6",
            "state_dict": renamed(state, "model.net.") | {"objective.net.weight": torch.ones(1)},
            "current_model_state": renamed(shifted(state), "model.net."),
        },
    ),
    "averaged model": (
        dm_wide,
        lambda state: {"ema": renamed(state, "module.") | {"n_averaged": torch.tensor(3)}, "model": shifted(state)},
    ),
    "without counters": (dm_wide, lambda state: {key: state[key] for key in state if "num_batches" not in key}),
    "one name for a shared tensor": (
        wide,
        lambda state: {key: state[key] for key in state if "activation" not in key or key.startswith("activation.")},
    ),
    "half precision": (
        dm_wide,
        lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    ),
}
"""For each family its network, and the content of its file, made from the state dict."""


def write(path: Path, name: str) -> nn.Module:
    """Write a file of a family, and return its network."""
    make, content = FAMILIES[name]
    net = make()
    torch.save(content(net.state_dict()), path)
    return net.half().float() if name == "half precision" else net
