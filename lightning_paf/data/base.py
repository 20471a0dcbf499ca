"""Base class of the data modules."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from lightning_paf.data.datasets import MixedDataset, RawBatch, as_fetched
from lightning_paf.data.loader import WAIT, ImageLoader, ResumableLoader, check_workers
from lightning_paf.data.samplers import MixedSampler, ShardSampler, even_batch_size
from lightning_paf.specs import DatasetSpec, is_own


class ImageDataModule(LightningDataModule):
    """Loaders of images that resume exactly, for any number of devices.

    A subclass sets `spec` and the attributes `batch_size`, `eval_batch_size`, `num_workers` and `seed`, and calls
    `check_loading`. In `setup("fit")` it sets `_fingerprints` to those of its training images.
    """

    linked: ClassVar[tuple[str, ...]] = ()
    """Names of the arguments that the task has too; they follow the data."""
    sources: ClassVar[tuple[str, ...] | None] = None
    """Names of the arguments that determine `spec`; None for `linked`."""
    spec: DatasetSpec
    batch_size: int
    eval_batch_size: int
    num_workers: int
    seed: int
    _fingerprints: dict[str, str]

    @staticmethod
    def spec_of(*linked: Any) -> DatasetSpec:
        """Return the specification for values of the `sources`."""
        raise NotImplementedError

    @staticmethod
    def found(spec: DatasetSpec) -> dict[str, Any]:
        """Return arguments that a run records because they were found in the files."""
        return {}

    @classmethod
    def of_task(cls, name: str, *values: Any) -> Any:
        """Return the value of a `linked` argument of the task for values of the `sources`.

        Numbers that the data determines are filled in.
        """
        given = dict(zip(cls.sources or cls.linked, values, strict=True))
        found = given[name] is None and is_own(str(given.get("dataset", "")))
        return getattr(cls.spec_of(*values), name) if found else given[name]

    def check_loading(self, *sizes: str) -> None:
        """Check the seed, the number of workers and the attributes `sizes`.

        Raises:
            ValueError: One is out of range.
        """
        check_workers(self.num_workers)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"data.seed must be from 0 to 2^63 - 1, got {self.seed}. Pass e.g. --data.seed 0.")
        for name in ("batch_size", "eval_batch_size", *sizes):
            size = getattr(self, name)
            if isinstance(size, int) and not 1 <= size < 2**31:
                raise ValueError(f"{name} must be from 1 to 2^31 - 1, got {size}. Pass another --data.{name}.")

    def state_dict(self) -> dict[str, Any]:
        """Return fingerprints of the training images."""
        return self._fingerprints

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn of other training images than those of a resumed training."""
        changed = [name for name, now in self._fingerprints.items() if state_dict.get(name, now) != now]
        if changed:
            rank_zero_warn(
                f"The {' and '.join(changed)} training images are not those of the checkpoint: the training does not "
                "resume exactly. Restore the files, or start a new run."
            )

    def check_devices(self, number: int) -> None:
        """Check that the number of devices over all nodes divides the global batch.

        Raises:
            ValueError: It does not.
        """
        if self.batch_size % number:
            smaller = self.batch_size - self.batch_size % number
            raise ValueError(
                f"batch_size must be a multiple of the {number} devices, got {self.batch_size}. Pass --data.batch_size "
                f"{smaller or number}, or, to leave the training unchanged, another number of devices."
            )

    def train_loader(
        self, data: MixedDataset, real_per_batch: Sequence[int], batches: int, class_balanced: bool = False
    ) -> DataLoader[RawBatch]:
        """Batches of `batch_size` over all ranks; see `MixedSampler`."""
        sampler = MixedSampler(
            data,
            batch_size=self.batch_size,
            real_per_batch=real_per_batch,
            batches=batches,
            num_replicas=self._world_size,
            rank=self._rank,
            seed=self.seed,
            class_balanced=class_balanced,
            changing=data.changing,
        )
        return ResumableLoader(
            data, self.batch_size // self._world_size, sampler=sampler, **self._fetching(self.num_workers)
        )

    def eval_loader(self, dataset: Dataset[Any], num_workers: int) -> DataLoader[RawBatch]:
        """The images of this rank, in their order and without padding."""
        batch_size = even_batch_size(len(dataset), self._world_size, self.eval_batch_size)  # type: ignore[arg-type]
        sampler = ShardSampler(dataset, self._world_size, self._rank)
        # By name, because Lightning rebuilds the loader of `predict` from its arguments.
        return ImageLoader(dataset, batch_size=batch_size, sampler=sampler, **self._fetching(num_workers))

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _check_evaluated(self, part: str, images: int, option: str) -> None:
        """Check that each rank has an image of a part."""
        if images < self._world_size:
            raise ValueError(
                f"The number of {part} images must be at least that of the {self._world_size} devices, got {images}. "
                f"Pass {option} or a smaller --trainer.devices."
            )

    def _fetching(self, num_workers: int) -> dict[str, Any]:
        """Arguments of all loaders."""
        return {
            "num_workers": num_workers,
            "timeout": WAIT if num_workers else 0,
            "collate_fn": as_fetched,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": num_workers > 0,
            # Otherwise each pass over a loader draws from the global generator, and a resumed training, which makes
            # other passes, would continue with other random numbers.
            "generator": torch.Generator().manual_seed(self.seed),
        }


class FolderDataModule(ImageDataModule):
    """Base of data modules that read the parts `train`, `val` and `test` from folders.

    A subclass defines `_files`, and in `setup` sets `_evaluated` to the datasets of the parts `val` and `test`.
    """

    _evaluated: Mapping[str, Dataset[Any]]

    def prepare_data(self, stage: str | None = None) -> None:
        """Check the folders before processes start."""
        for part in self._parts(stage or stage_of(self.trainer)):
            self._files(part)

    def val_dataloader(self) -> DataLoader[RawBatch]:
        """All samples for validation and for selecting the checkpoint."""
        return self.eval_loader(self._evaluated["val"], num_workers=0)

    def test_dataloader(self) -> DataLoader[RawBatch]:
        """All samples for the test."""
        return self.eval_loader(self._evaluated["test"], num_workers=0)

    def _parts(self, stage: str) -> Sequence[str]:
        return {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))

    def _files(self, part: str) -> Any:
        """Find and check the files of a part."""
        raise NotImplementedError


def stage_of(trainer: Trainer | None) -> str:
    """The stage of a trainer; `fit` without a trainer."""
    fn = trainer.state.fn if trainer else None
    known = {None: "fit", TrainerFn.FITTING: "fit", TrainerFn.VALIDATING: "validate", TrainerFn.PREDICTING: "predict"}
    return known.get(fn, "test")
