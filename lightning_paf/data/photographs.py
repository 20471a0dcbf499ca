"""Photographs for the training and evaluation of denoisers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_paf.data.augment import Augment, Dihedral
from lightning_paf.data.base import FolderDataModule
from lightning_paf.data.checks import readable
from lightning_paf.data.datasets import MixedDataset, RawBatch
from lightning_paf.data.readers.photographs import (
    Patches,
    PhotographBatch,
    PhotographDataset,
    find_photographs,
    packaged_photographs,
    paired_photographs,
    read_photograph,
)
from lightning_paf.data.samplers import batches_per_epoch
from lightning_paf.data.sources import ImageSet
from lightning_paf.specs import DatasetSpec

SMALLEST_PATCH = 11
"""Width of the window of SSIM."""


class PhotographDataModule(FolderDataModule):
    """Patches of photographs for training, whole photographs for validation and test.

    Training batches are patches (N, C, patch, patch) in [0, 1] and zeros (N,). Other batches are lists of photographs
    (C, H, W) in [0, 1], which can differ in size, their numbers (N,), and a list of the same photographs with real
    noise, which is empty without `pairs`. Each folder can have subfolders.

    Args:
        train_dir: Folder of the training photographs; null for some that are installed with scikit-image.
        val_dir: Folder for validation; null holds out a tenth of `train_dir`, at least one photograph.
        test_dir: Folder for the test, such as Set12, BSD68 or Kodak24; null for those of scikit-image.
        pairs: Parts of the paths in `test_dir` of photographs with real noise and of clean ones of the same scenes:
            `[real, mean]` for PolyU, `[NOISY, GT]` for SIDD. Null for clean photographs alone.
        channels: 1 for grey (luma), 3 for colour; other photographs are converted.
        patch: Height and width of a training patch.
        stride: Distance of neighbouring training patches.
        crop: Largest height and width in validation and test; of larger photographs the middle is used. Null for whole
            photographs.
        batch_size: Patches in a global batch, over all devices and nodes.
        eval_batch_size: Photographs fetched at once in validation and test, per device; they are processed one by one.
        epoch: Patches in an epoch; null for every patch once.
        num_workers: Processes per device that cut training patches; 0 cuts them in the main process.
        augment: Random change of training patches; `Dihedral` for the 8 flips and rotations, or null.
        seed: Seed of the order of the patches.

    Raises:
        ValueError: An argument is out of range (at construction); a folder without photographs, or a photograph that is
            damaged or smaller than a patch (in `prepare_data` or `setup`, before training).
    """

    linked = ("channels", "patch")

    @staticmethod
    def spec_of(channels: int, patch: int) -> DatasetSpec:
        """Return a specification without classes.

        Raises:
            ValueError: The number of channels is neither 1 nor 3, or the patch is too small.
        """
        if channels not in (1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {channels}. Pass --data.channels 1 for grey images.")
        if patch < SMALLEST_PATCH:
            raise ValueError(f"data.patch must be at least {SMALLEST_PATCH}, got {patch}. Pass --data.patch 50.")
        return DatasetSpec("photographs", 0, patch, (0.5,) * channels, (0.25,) * channels)

    def __init__(
        self,
        train_dir: Path | None = None,
        val_dir: Path | None = None,
        test_dir: Path | None = None,
        pairs: tuple[str, str] | None = None,
        channels: int = 1,
        patch: int = 50,
        stride: int = 10,
        crop: int | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 1,
        epoch: int | None = None,
        num_workers: int = 0,
        augment: Augment | None = Dihedral(),  # noqa: B008  # immutable
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.spec = self.spec_of(channels, patch)
        self.folders = {"train": train_dir, "val": val_dir, "test": test_dir}
        self.pairs, self.stride, self.crop = pairs, stride, crop
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.epoch, self.num_workers = epoch, num_workers
        self.augment, self.seed = augment, seed
        self._fingerprints: dict[str, str] = {}
        self.check_loading("epoch", "stride")
        if pairs and test_dir is None:
            raise ValueError("data.pairs must come with a folder, got none. Pass --data.test_dir FOLDER.")
        if crop is not None and crop < patch:
            raise ValueError(
                f"data.crop must be at least data.patch={patch}, got {crop}. Pass --data.crop {patch}, or null."
            )

    @readable()
    def setup(self, stage: str) -> None:
        """Read the photographs that a stage uses.

        Args:
            stage: One of fit, validate, test.
        """
        self._evaluated: dict[str, PhotographDataset] = {}
        for part in self._parts(stage):
            files = self._files(part)
            images = self._read(files, None if part == "train" else self.crop)
            if part != "train":
                self._check_evaluated(part, len(files), f"another --data.{part}_dir")
                noisy = self._noisy(files, images) if part == "test" and self.pairs else []
                self._evaluated[part] = PhotographDataset(images, [path.name for path in files], noisy)
                continue
            patches: Any = Patches(images, self.spec.size, self.stride)
            labels = np.broadcast_to(np.int64(0), patches.shape[0])
            self._train_set = MixedDataset(ImageSet(patches, labels), None)
            self._fingerprints = self._train_set.fingerprints()

    def train_dataloader(self) -> DataLoader[RawBatch]:
        """Batches of `batch_size` patches over all ranks."""
        batches = batches_per_epoch(self._train_set.real_size, self.batch_size, 1.0, self.epoch or "real_pass")
        return self.train_loader(self._train_set, [self.batch_size], batches)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert a batch to floats in [0, 1] on the device, and augment patches."""
        if isinstance(batch, RawBatch):
            images = batch.images.permute(0, 3, 1, 2)
            return (images if self.augment is None else self.augment(images)).float().div_(255), batch.labels
        if isinstance(batch, PhotographBatch):
            clean, noisy = (
                [x.permute(2, 0, 1).float().div_(255) for x in part] for part in (batch.images, batch.noisy)
            )
            return clean, batch.numbers, noisy
        return batch

    def test_batches(self) -> Iterator[tuple[list[Tensor], Tensor, list[Tensor]]]:
        """Yield each test photograph as a batch."""
        self.prepare_data("test")
        self.setup("test")
        dataset = self._evaluated["test"]
        for number in range(len(dataset)):
            yield self.on_after_batch_transfer(dataset[number], 0)

    def _read(self, files: Sequence[Path], crop: int | None) -> list[NDArray[np.uint8]]:
        return [read_photograph(path, self.spec.channels, self.spec.size, crop) for path in files]

    def _noisy(self, files: list[Path], images: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Read the photographs with real noise of the clean ones."""
        assert self.folders["test"] is not None
        assert self.pairs is not None
        paths, _ = paired_photographs(Path(self.folders["test"]), self.pairs)
        found = self._read(paths, self.crop)
        for path, file, noisy, image in zip(paths, files, found, images, strict=True):
            if noisy.shape != image.shape:
                raise ValueError(
                    f"{path} must have the size of {file}, {image.shape[:2]}, got {noisy.shape[:2]}. Remove both."
                )
        return found

    def _files(self, part: str) -> list[Path]:
        """List the photographs of a part, clean ones of pairs."""
        if part == "test" and self.pairs and self.folders["test"] is not None:
            return paired_photographs(Path(self.folders["test"]), self.pairs)[1]
        own, train = self.folders[part], self.folders["train"]
        if part == "test" or train is None or self.folders["val"] is not None:
            option = f"--data.{part}_dir"
            return packaged_photographs(part, option) if own is None else find_photographs(Path(own), option)
        files = find_photographs(Path(train), "--data.train_dir")
        if len(files) < 2:
            raise ValueError(
                f"--data.train_dir must hold at least 2 photographs, one of them for validation, got {len(files)} in "
                f"{train}. Pass --data.val_dir FOLDER."
            )
        return files[::10] if part == "val" else [file for number, file in enumerate(files) if number % 10]
