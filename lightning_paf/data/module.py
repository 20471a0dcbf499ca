"""Images for training and evaluation."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_paf.data.augment import Augment, standard_augment
from lightning_paf.data.base import ImageDataModule, stage_of
from lightning_paf.data.checks import readable
from lightning_paf.data.datasets import EvalDataset, MixedDataset, RawBatch
from lightning_paf.data.image_batches import select_images
from lightning_paf.data.mixing import Mixing, distributions
from lightning_paf.data.own import OwnImages, described
from lightning_paf.data.readers.folder import find_sources
from lightning_paf.data.samplers import batches_per_epoch, real_per_batch
from lightning_paf.data.sources import ImageSet, Part, has_part, hold_out, read_parts
from lightning_paf.data.synthetic.convert import convert_all, converted_folder
from lightning_paf.data.synthetic.pool import SyntheticPool
from lightning_paf.schedules import Schedule
from lightning_paf.specs import DatasetName, DatasetSpec, is_encoded

_OPTIONAL: tuple[Part, ...] = ("val", "test")
"""Parts that training does not require."""


class RobustDataModule(ImageDataModule):
    """Real images, mixed with synthetic ones for training.

    Batches are floats (N, C, H, W) in [0, 1] and labels (N,). Every global batch has exactly
    `round(real_fraction * batch_size)` real images, on any number of devices. Images are sent to the device as uint8,
    augmented there and converted to floats.

    Args:
        dataset: Real images. `digits` come with scikit-learn. `folder` are your own image files: `root` holds
            `train/CLASS/*`, `test/CLASS/*` and optionally `val/CLASS/*`. `npz` are your own arrays: `root` holds
            `train.npz` and `test.npz`, each with `image` uint8 (N, H, W, C) and `label` (N,), and optionally `val.npz`,
            or is a file of MedMNIST. Grey images can be (N, H, W). `huggingface`: `root` is a folder of `save_to_disk`
            or a name on the hub. `torchvision.datasets.NAME` is any dataset with the argument `train` or `split`. A
            command needs only the files that it uses, and `predict` no labels.
        root: Folder of the real images; missing files of CIFAR and SVHN are downloaded into it.
        num_classes: Number of classes of `npz`; that of other own images follows from the files.
        channels: Number of image channels of your own images; by default that of the first image.
        synthetic: Synthetic images: one or several `.npz` files (keys `image` + `label`, or `X` + `Y`), TI-500K's
            pickle, parquet files of encoded images (columns `image` + `label`), or folders of such files. Each file is
            converted once, next to it, to memory-mapped arrays. A folder of npy arrays (`NAME.image.npy` +
            `NAME.label.npy`) is used without conversion.
        cache_dir: Folder for the converted arrays, for example when the file's own folder is read-only.
        real_fraction: Fraction of real images in a batch; 1 for no synthetic ones.
        real_schedule: Factor of `real_fraction` from epoch to epoch, such as `Switch`, which adds real images late in
            training (Bartoldson et al. 2024); null for a constant fraction. The length of an epoch does not change.
        batch_size: Images in a global batch, over all devices and nodes.
        eval_batch_size: Images in a batch of validation and test, per device; adjusted slightly if devices would
            otherwise have different numbers of batches.
        val_size: Number of training images held out for validation: the first ones, as in Gowal et al. 2020. Not used
            if own images have a part `val`.
        selection: Images for validation and for selecting the best checkpoint: `val`, the held-out images, or `test`,
            the test set, as in the code of Dai et al. 2021. `test` holds out no images and biases results upwards; it
            is for comparisons only.
        epoch: `real_pass`: an epoch uses every real image once (Dai et al. 2021), and its last batch is filled up; a
            number: an epoch has that many images of either kind (50000 in Gowal et al. 2021, Wang et al. 2023).
        train_examples: Use only the first n real training images, for quick runs.
        num_workers: Processes per device that fetch batches; 0 fetches in the main process.
        augment: Random change of training images; `standard` means crop and flip for CIFAR, crop for SVHN, none for
            `digits` and own images.
        augment_synthetic: Augment synthetic images too; Dai et al. 2021 do not.
        synthetic_smoothing: Fraction of the label of a synthetic image that is spread evenly over all classes; 0.1 in
            Gowal et al. 2021. Smoothing for all images is an argument of the objective.
        mixing: Mixture of training images and labels after `augment`: `CutMix` or null. With mixing or smoothing,
            training labels are distributions over the classes (N, num_classes).
        seed: Seed of the order of the real images and of the draws from the synthetic ones.
        class_balanced: Draw real training images with replacement, all classes equally often, for unequal numbers of
            images per class. For weights in the loss, see the objectives with `class_weights`.
        **files: Options of image files; see `OwnImages`.

    Raises:
        ValueError: An argument is out of range (at construction), or images, labels or files are invalid (in
            `prepare_data` or `setup`, before training).
    """

    linked = ("dataset", "num_classes", "channels", "size")
    sources = (*linked, "root", "classes")
    spec_of = staticmethod(described)

    def __init__(
        self,
        dataset: DatasetName = "cifar10",
        root: Path = Path("data"),
        num_classes: int | None = None,
        synthetic: list[Path] | Path | None = None,
        cache_dir: Path | None = None,
        real_fraction: float = 0.3,
        real_schedule: Schedule | None = None,
        batch_size: int = 512,
        eval_batch_size: int = 256,
        val_size: int = 1024,
        selection: Literal["val", "test"] = "val",
        epoch: Literal["real_pass"] | int = "real_pass",
        train_examples: int | None = None,
        num_workers: int = 4,
        augment: Augment | Literal["standard"] | None = "standard",
        augment_synthetic: bool = True,
        synthetic_smoothing: float = 0.0,
        mixing: Mixing | None = None,
        seed: int = 0,
        channels: int | None = None,
        class_balanced: bool = False,
        **files: Any,
    ) -> None:
        super().__init__()
        self.root, self.cache_dir = Path(root), Path(cache_dir) if cache_dir else None
        self.files = OwnImages(self.root, self.cache_dir, seed, **files)
        self.spec = described(dataset, num_classes, channels, self.files.size, root, self.files.classes)
        self.synthetic = [Path(path) for path in (synthetic if isinstance(synthetic, list) else [synthetic]) if path]
        self.real_fraction, self.real_schedule = real_fraction, real_schedule
        self.batch_size, self.eval_batch_size, self.val_size = batch_size, eval_batch_size, val_size
        self.selection, self.epoch, self.train_examples = selection, epoch, train_examples
        self.num_workers = num_workers
        self.augment = standard_augment(dataset) if augment == "standard" else augment
        self.augment_synthetic, self.synthetic_smoothing = augment_synthetic, synthetic_smoothing
        self.mixing, self.seed, self.class_balanced = mixing, seed, class_balanced
        self._fingerprints: dict[str, str] = {}
        self._check_arguments()

    @staticmethod
    def found(spec: DatasetSpec) -> dict[str, Any]:
        """Return classes and channels of image files, to read other folders alike."""
        return {"classes": list(spec.class_names) or None, "channels": spec.channels} if is_encoded(spec.name) else {}

    def _check_arguments(self) -> None:
        self.check_loading("train_examples", "epoch")
        self.files.check(self.spec)
        if not 0 <= self.real_fraction <= 1:
            raise ValueError(
                f"real_fraction must be from 0 to 1, got {self.real_fraction}. Pass e.g. --data.real_fraction 0.3."
            )
        if self.real_schedule is not None:
            self.real_schedule.check_fraction("real_fraction")
        if not 0 <= self.synthetic_smoothing < 1:
            raise ValueError(
                f"synthetic_smoothing must be in [0, 1), got {self.synthetic_smoothing}. "
                "Pass e.g. --data.synthetic_smoothing 0.1."
            )
        if self.synthetic_smoothing and self.real_fraction == 1:
            raise ValueError(
                f"synthetic_smoothing must be 0 without synthetic images, got {self.synthetic_smoothing}. "
                "Pass --data.synthetic_smoothing 0; to smooth all labels: --model.objective.label_smoothing."
            )
        real = real_per_batch(self.batch_size, self.real_fraction)
        if real == 0 and (self.real_fraction > 0 or self.epoch == "real_pass"):
            raise ValueError(
                f"real_fraction must leave a real image in a batch of {self.batch_size}, got {self.real_fraction}. "
                "Raise one of them, or use synthetic images only: --data.real_fraction 0 --data.epoch 50000."
            )
        if real == self.batch_size and self.real_fraction < 1:
            raise ValueError(
                f"real_fraction must leave a synthetic image in a batch of {self.batch_size}, got "
                f"{self.real_fraction}. Lower it, or use real images only: --data.real_fraction 1."
            )

    @readable()
    def prepare_data(self, stage: str | None = None) -> None:
        """Download missing images and convert synthetic ones, once on each node.

        Args:
            stage: As for `setup`; by default that of the trainer.
        """
        stage = stage or stage_of(self.trainer)
        conversions = []
        if stage == "fit":
            self._check_mixture()
            conversions = self._conversions()
        real = self._read(stage, download=True)
        if stage == "fit":
            self._check_batch_size(len(self._shorten(real["train"])))
        if conversions:
            convert_all(conversions, real["train"].images.shape, self.spec.num_classes)

    @readable()
    def setup(self, stage: str) -> None:
        """Read and split the images that a stage uses.

        Args:
            stage: One of fit, validate, test, predict. Only `fit` needs synthetic images; `fit`, and `validate` without
                a `val.npz`, need training images.
        """
        self._real = self._read(stage, download=False)
        for part in _OPTIONAL:
            if part in self._real:
                self._check_evaluated(part, len(self._real[part]), "a larger --data.val_size")
        if stage == "fit":
            self._check_mixture()
            train = self._real["train"]
            self._train_set = MixedDataset(self._shorten(train), self._open_pool(train))
            self._fingerprints = self._train_set.fingerprints()

    def train_dataloader(self) -> DataLoader[RawBatch]:
        """Mixed batches of `batch_size` over all ranks."""
        batches = batches_per_epoch(self._train_set.real_size, self.batch_size, self.real_fraction, self.epoch)
        return self.train_loader(self._train_set, self._real_per_batch(), batches, self.class_balanced)

    def _real_per_batch(self) -> list[int]:
        """Number of real images in a global batch, per epoch."""
        if self.real_schedule is None:
            return [real_per_batch(self.batch_size, self.real_fraction)]
        factors = [self.real_schedule(epoch / self._epochs) for epoch in range(self._epochs)]
        return [real_per_batch(self.batch_size, self.real_fraction * factor) for factor in factors]

    def val_dataloader(self) -> DataLoader[RawBatch]:
        """The images for validation and for selecting the checkpoint."""
        return self.eval_loader(EvalDataset(self._real["val"]), self.num_workers)

    def test_dataloader(self) -> DataLoader[RawBatch]:
        """The test images, in their order."""
        return self.eval_loader(EvalDataset(self._real["test"]), self.num_workers)

    def predict_dataloader(self) -> DataLoader[RawBatch]:
        """The test images, in their order."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch and convert it to floats, on the device.

        Args:
            batch: uint8 images (N, H, W, C), labels, and a mask of the synthetic images. Batches of other loaders and
                the sample of an export are returned unchanged.
            dataloader_idx: Not used.

        Returns:
            Images (N, C, H, W) in [0, 1], in channels-last layout for training, and labels (N,), or distributions over
            the classes (N, num_classes) if training smooths or mixes labels.
        """
        if not isinstance(batch, RawBatch):
            return batch
        images, targets = self.augmented(batch), batch.labels
        if batch.synthetic is not None and (self.synthetic_smoothing or self.mixing):
            targets = distributions(targets, self.spec.num_classes, batch.synthetic * self.synthetic_smoothing)
            if self.mixing:
                images, targets = self.mixing(images, targets)
        return images.float().div_(255), targets

    def augmented(self, batch: RawBatch) -> Tensor:
        """Return the images of a batch as uint8 (N, C, H, W), augmented in training."""
        images = batch.images.permute(0, 3, 1, 2)
        if batch.synthetic is None:
            return images.contiguous()  # for evaluation packages, which flatten images with `view`
        if self.augment is None:
            return images
        changed = self.augment(images)
        return changed if self.augment_synthetic else select_images(batch.synthetic, images, changed)

    @property
    def _epochs(self) -> int:
        return (self.trainer.max_epochs if self.trainer else 0) or 0

    def _check_mixture(self) -> None:
        if self.real_fraction < 1 and not self.synthetic:
            raise ValueError(
                f"data.synthetic must be set for real_fraction={self.real_fraction}, got none. "
                "Pass --data.synthetic PATH.npz or --data.real_fraction 1."
            )
        if self.real_fraction == 1 and self.synthetic:
            raise ValueError(
                f"real_fraction must be below 1 for data.synthetic={self.synthetic[0]}, got 1. "
                "Pass --data.real_fraction 0.3 to use the synthetic images, or --data.synthetic null to omit them."
            )
        if self.real_schedule is not None and self._epochs < 1:
            raise ValueError(
                f"trainer.max_epochs must be at least 1 for real_schedule, got {self._epochs}. "
                "Pass e.g. --trainer.max_epochs 400, or --data.real_schedule null."
            )
        self.check_devices(self._world_size)

    def _check_batch_size(self, images: int) -> None:
        if max(self._real_per_batch()) > images:
            raise ValueError(
                f"batch_size must leave at most {images} real images in a batch, as many as there are for training, "
                f"got {self.batch_size}. Pass --data.batch_size {round(images / self.real_fraction)} or less."
            )

    def _conversions(self) -> list[tuple[Path, Path]]:
        return [(source, converted_folder(source, self.cache_dir)) for source in find_sources(self.synthetic)]

    def _open_pool(self, real: ImageSet) -> SyntheticPool | None:
        if not self.synthetic:
            return None
        pool = SyntheticPool([folder for _, folder in self._conversions()])
        pool.check(real.images.shape, self.spec.num_classes)
        return pool

    def _read(self, stage: str, download: bool) -> dict[Part, ImageSet]:
        """Read the parts that a stage uses; `fit` also checks test images, if any."""
        reader = self.files if is_encoded(self.spec.name) else None
        has = has_part if reader is None else reader.has_part
        present = [part for part in _OPTIONAL if has(self.spec, self.root, part)]
        parts: dict[str, list[Part]] = {
            "fit": ["train", *present],
            "validate": ["val"] if "val" in present else ["train"],
        }
        if self.selection == "test":
            parts = {"fit": ["train", "test"], "validate": ["test"]}
        found = read_parts(self.spec, self.root, parts.get(stage, ["test"]), download, stage != "predict", reader)
        return found if stage not in parts else self._with_validation(found)

    def _with_validation(self, found: dict[Part, ImageSet]) -> dict[Part, ImageSet]:
        """Add images for validation, unless the dataset has its own."""
        if self.selection == "test":
            rank_zero_warn(
                "data.selection=test: the best checkpoint is chosen on the test set, which biases its test results "
                "upwards. Use it only to compare with results that were obtained in this way."
            )
            return {**found, "val": found["test"]}
        if "val" in found:
            return found
        train, val = hold_out(found["train"], self.val_size)
        return {**found, "train": train, "val": val}

    def _shorten(self, train: ImageSet) -> ImageSet:
        if self.train_examples and self.train_examples > len(train):
            raise ValueError(
                f"train_examples must be at most {len(train)}, the number of training images without validation "
                f"images, got {self.train_examples}. Pass --data.train_examples {len(train)} or fewer."
            )
        return train.take(slice(self.train_examples))
