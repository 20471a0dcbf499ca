"""Settings of distributed jobs: torchrun, and batch normalisation over all ranks."""

import os
from typing import Any

import torch
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import distributed, nn

from lightning_paf.nn.sync_batch_norm import share_statistics, unshare_statistics


class SyncBatchNormOnAnyDevice(TorchSyncBatchNorm):
    """Plugin of `--trainer.sync_batchnorm true` that also works on CPUs."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Make every BatchNorm normalise over the batches of all ranks.

        Args:
            model: The LightningModule on its future `device`.
        """
        if getattr(model, "device", None) != torch.device("cpu"):
            return super().apply(model)
        share_statistics(model)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo `apply`."""
        unshare_statistics(model)
        return super().revert(model)


def follow_torchrun(config: dict[str, Any]) -> None:
    """Set the trainer's `devices` and `num_nodes` to those of torchrun.

    They can differ at every restart.

    Args:
        config: Arguments of the trainer, modified in place; unchanged without torchrun.

    Raises:
        ValueError: The machines have different numbers of processes.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("TORCHELASTIC_MAX_RESTARTS") != "0":
        rank_zero_warn(
            "After a restart, processes can read addresses of their predecessors from the store that torchrun shares "
            "with them, and fail. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or pass it --max-restarts 0."
        )
    world, devices, nodes = (int(os.environ[f"{name}WORLD_SIZE"]) for name in ("", "LOCAL_", "GROUP_"))
    if devices * nodes != world:
        raise ValueError(
            f"All machines must run equally many processes, got {world} from torchrun on {nodes} machines, "
            f"{devices} of them on this one. Pass the same --nproc-per-node on all machines."
        )
    given = config.get("devices", "auto"), config.get("num_nodes", 1)
    if _number(given[0]) != devices:
        config["devices"] = devices
    config["num_nodes"] = nodes
    if given not in ((config["devices"], nodes), ("auto", 1)):
        rank_zero_info(
            f"torchrun has started {devices} processes on each of {nodes} machines, which replaces --trainer.devices "
            f"{given[0]} --trainer.num_nodes {given[1]} of the configuration."
        )


def _number(devices: Any) -> int | None:
    """Return the number of devices in an argument; None if it depends on the machine."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    return len(text.strip(",").split(",")) if "," in text else int(text) if text.isdigit() else None
