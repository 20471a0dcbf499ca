"""Predictions of `predict` in a file."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from lightning_paf.evaluation.identity import content_fingerprint, network_fingerprint
from lightning_paf.functional.predictions import predicted
from lightning_paf.runs.folder import run_folder_of
from lightning_paf.runs.weights_origin import weights_origin
from lightning_paf.utils.distributed import gathered
from lightning_paf.utils.files import npz_bytes, write_whole
from lightning_paf.utils.hashing import sample_fingerprints, weights_fingerprint


class PredictionWriter(BasePredictionWriter):
    """Writer of predictions to `predictions.npz` in the run folder.

    The file holds, sorted by `index`: `index` (N,) int64, the index of the sample in the dataset; `label` (N,) int64,
    -1 if unknown; `prediction` (N,) int64; `probabilities` (N, num_classes) float32. If logits are not finite, the
    prediction is -1 and the probabilities are NaN. `class_names` (num_classes,) is in the order of the labels, or empty
    if classes have no names. Several processes write `predictions_rank{r}.npz`, which together hold every sample once.

    The string `checkpoint` names the weights, and `identity` is a hash of weights and samples. Predictions of other
    weights or samples are kept: the new file is then `predictions-{identity}.npz`, with eight digits.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._index: list[Tensor] = []
        self._label: list[Tensor] = []
        self._probabilities: list[Tensor] = []
        self._samples: list[NDArray[np.uint8]] = []

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset."""
        self._index, self._label, self._probabilities, self._samples = [], [], [], []

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
        """Collect one batch."""
        seen = sum(len(label) for label in self._label)
        # A loader without a sampler has no indices; samples are numbered in order.
        self._index.append(torch.as_tensor(batch_indices or range(seen, seen + len(prediction["label"]))))
        self._label.append(prediction["label"].cpu())
        self._probabilities.append(prediction["probabilities"].float().cpu())
        images = batch if isinstance(batch, Tensor) else batch[0]
        self._samples.append(sample_fingerprints(images, prediction["label"].to(images.device)))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file atomically."""
        # The folder and the identity are collective operations.
        folder = run_folder_of(trainer)
        origin, identity = weights_origin(trainer, pl_module), self._identity(pl_module)
        rank = "" if trainer.world_size == 1 else f"_rank{trainer.global_rank}"
        path = folder / f"predictions{rank}.npz"
        taken = origin.untrained or (path.is_file() and _identity_of(path) != identity)
        if trainer.strategy.reduce_boolean_decision(taken, all=False):
            path, kept = path.with_stem(f"predictions-{identity[:8]}{rank}"), path
            rank_zero_info(f"Predictions: {path}. {kept} was not replaced: it is for other weights or samples.")
        else:
            rank_zero_info(f"Predictions: {path}.")
        if not self._index:
            return
        spec = getattr(getattr(trainer, "datamodule", None), "spec", None)
        index, label, probabilities = (torch.cat(p) for p in (self._index, self._label, self._probabilities))
        order = index.argsort()
        _save(
            path,
            index=index[order].numpy(),
            label=label[order].numpy(),
            prediction=predicted(probabilities[order]).numpy(),
            probabilities=probabilities[order].numpy(),
            class_names=np.array(getattr(spec, "class_names", ()), str),
            checkpoint=np.array(str(origin)),
            identity=np.array(identity),
        )

    def _identity(self, pl_module: LightningModule) -> str:
        """Hash the weights and the samples of all processes; hexadecimal digits."""
        model = getattr(pl_module, "model", pl_module)
        index = torch.cat([*self._index, torch.empty(0, dtype=torch.int64)])
        samples = np.concatenate([*self._samples, np.empty((0, 32), np.uint8)])
        seen = dict(zip(index.tolist(), (row.tobytes().hex() for row in samples), strict=True))
        together = {str(number): sample for part in gathered(seen) for number, sample in part.items()}
        content = {"weights": weights_fingerprint(model), "network": network_fingerprint(model), "samples": together}
        return content_fingerprint(content)


def _identity_of(path: Path) -> str | None:
    """Return the identity of written predictions; None if unknown."""
    try:
        with np.load(path) as content:
            return str(content["identity"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, npz_bytes(**arrays))
