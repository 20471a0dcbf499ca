"""Origin of the evaluated weights: a checkpoint, the starting weights, or weights in memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class WeightsOrigin:
    """Origin of the weights that an evaluation is about.

    Attributes:
        file: Name of the checkpoint file, or a description where there is none.
        global_step: Optimiser steps before the checkpoint; None if unknown.
        epoch: Epoch of the checkpoint, from 0; None if unknown.
        untrained: Whether these are the starting weights of a training, evaluated on purpose.
    """

    file: str
    global_step: int | None = None
    epoch: int | None = None
    untrained: bool = False

    @classmethod
    def of_starting_weights(cls, weights: str) -> "WeightsOrigin":
        """Origin of weights that nothing was loaded into.

        Args:
            weights: What they are, such as `random weights`.
        """
        return cls(f"untrained ({weights})", untrained=True)

    @classmethod
    def of_checkpoint(cls, path: Path) -> "WeightsOrigin":
        """Origin of the weights in a checkpoint. Nothing in it is executed; what cannot be read leaves the name."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # a folder of shards, an address, objects of other packages: Lightning has loaded it
            return cls(path.name)
        return cls(path.name, content.get("global_step"), content.get("epoch"))

    @classmethod
    def of_content(cls, content: Mapping[str, Any] | None) -> "WeightsOrigin | None":
        """Inverse of `content`; None for results of versions that did not record it."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__}) if content else None

    def content(self) -> dict[str, Any]:
        """Plain values for a result file."""
        return asdict(self)

    def __str__(self) -> str:
        """As in `last.ckpt (step 1200, epoch 14)`."""
        return self.file if self.global_step is None else f"{self.file} (step {self.global_step}, epoch {self.epoch})"
