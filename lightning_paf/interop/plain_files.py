"""A network's weights as files that any other program reads."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_paf.interop.normalized_net import Statistics


def plain_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU: no two entries share memory, and a shared tensor is there under each of its names."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in net.state_dict().items()}


def save_state_dict(net: nn.Module, path: Path) -> None:
    """Write what `torch.load(path, weights_only=True)` reads: a plain dictionary of tensors."""
    torch.save(plain_state_dict(net), path)


def save_safetensors(net: nn.Module, path: Path, statistics: Statistics | None = None) -> None:
    """Write a safetensors file.

    Args:
        net: The network, without its normalisation.
        path: Where to.
        statistics: The normalisation; noted in the file's metadata, where `import-weights` finds it.
    """
    from safetensors.torch import save

    notes: Mapping[str, tuple[float, ...]] = {} if statistics is None else statistics._asdict()
    metadata = {"format": "pt"} | {name: json.dumps(values) for name, values in notes.items()}
    path.write_bytes(save(plain_state_dict(net), metadata))  # `save_file` would hide it from everybody else
