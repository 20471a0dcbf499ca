"""Origin of evaluated weights: a checkpoint, starting weights, or memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:  # for a fast import
    from lightning.pytorch import LightningModule, Trainer


@dataclass(frozen=True)
class WeightsOrigin:
    """Origin of evaluated weights.

    Attributes:
        file: Name of the checkpoint file, or a description where there is none.
        global_step: Optimiser steps before the checkpoint; None if unknown.
        epoch: Epoch of the checkpoint, from 0; None if unknown.
        untrained: Whether they are the starting weights of a training, evaluated on purpose.
    """

    file: str
    global_step: int | None = None
    epoch: int | None = None
    untrained: bool = False

    @classmethod
    def of_starting_weights(cls, weights: str) -> "WeightsOrigin":
        """Return the origin of untrained weights, described as in `random weights`."""
        return cls(f"untrained ({weights})", untrained=True)

    @classmethod
    def of_checkpoint(cls, path: Path) -> "WeightsOrigin":
        """Return the origin of weights in a checkpoint, without executing its content.

        If the file is unreadable, the origin is only its name.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # a folder of shards, a URL, objects of other packages
            return cls(path.name)
        return cls(path.name, content.get("global_step"), content.get("epoch"))

    @classmethod
    def of_content(cls, content: Mapping[str, Any] | None) -> "WeightsOrigin | None":
        """Invert `content`; None for results of versions that did not record it."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__}) if content else None

    def content(self) -> dict[str, Any]:
        """Return plain values for a result file."""
        return asdict(self)

    def __str__(self) -> str:
        """Format as in `last.ckpt (step 1200, epoch 14)`."""
        return self.file if self.global_step is None else f"{self.file} (step {self.global_step}, epoch {self.epoch})"


def weights_origin(trainer: "Trainer", pl_module: "LightningModule") -> WeightsOrigin:
    """Return the origin of the weights that a trainer evaluates."""
    if trainer.ckpt_path:
        return WeightsOrigin.of_checkpoint(Path(trainer.ckpt_path))
    untrained: WeightsOrigin | None = getattr(pl_module, "untrained", None)
    return untrained or WeightsOrigin("weights in memory", trainer.global_step, trainer.current_epoch)
