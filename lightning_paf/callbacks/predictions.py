"""The result of `predict` as a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lightning_paf.functional.predictions import predicted


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict` finds to `predictions.npz` in the run folder.

    The file holds, sorted by `index`: `index` (N,) int64, the sample's place in the dataset; `label` (N,) int64;
    `prediction` (N,) int64; `probabilities` (N, num_classes) float32. With several processes each writes what it has
    seen to `predictions_rank{r}.npz`; together they hold every sample once. A file of the same name is replaced.
    Where logits are not finite the prediction is -1 and the probabilities are NaN.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._index: list[Tensor] = []
        self._label: list[Tensor] = []
        self._probabilities: list[Tensor] = []

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last run."""
        self._index, self._label, self._probabilities = [], [], []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Mapping[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep one batch."""
        seen = sum(len(label) for label in self._label)
        # A loader without a sampler does not tell places; its samples are numbered as they come.
        self._index.append(torch.as_tensor(batch_indices or range(seen, seen + len(prediction["label"]))))
        self._label.append(prediction["label"].cpu())
        self._probabilities.append(prediction["probabilities"].float().cpu())

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, complete or not at all."""
        # `log_dir` is agreed upon among the processes: all of them must ask.
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not self._index:
            return
        index, label, probabilities = (torch.cat(p) for p in (self._index, self._label, self._probabilities))
        order = index.argsort()
        name = "predictions.npz" if trainer.world_size == 1 else f"predictions_rank{trainer.global_rank}.npz"
        _save(
            folder / name,
            index=index[order].numpy(),
            label=label[order].numpy(),
            prediction=predicted(probabilities[order]).numpy(),
            probabilities=probabilities[order].numpy(),
        )


def _save(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    """Write next to the file, then replace it: a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy types `**kwds` together with `allow_pickle`
    part.replace(path)
