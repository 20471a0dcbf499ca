"""Weights as files for other programs: state dict and safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_paf.interop.normalized_net import Statistics


def plain_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """Copy a state dict to the CPU, with a separate copy for each shared name."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in net.state_dict().items()}


def save_state_dict(net: nn.Module, path: Path) -> None:
    """Write a plain dictionary of tensors for `torch.load(path, weights_only=True)`."""
    torch.save(plain_state_dict(net), path)


def save_safetensors(net: nn.Module, path: Path, statistics: Statistics | None = None) -> None:
    """Write a safetensors file.

    Args:
        net: The network, without its normalisation.
        path: File to write.
        statistics: The normalisation, for the metadata of the file.
    """
    from safetensors.torch import save

    notes: Mapping[str, tuple[float, ...]] = {} if statistics is None else statistics._asdict()
    metadata = {"format": "pt"} | {name: json.dumps(values) for name, values in notes.items()}
    path.write_bytes(save(plain_state_dict(net), metadata))  # `save_file` makes it private
