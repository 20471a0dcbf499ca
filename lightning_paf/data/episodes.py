"""Episodes for the training and evaluation of few-shot segmentation."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lightning_paf.data.base import FolderDataModule
from lightning_paf.data.checks import readable
from lightning_paf.data.datasets import RawBatch
from lightning_paf.data.episode_set import EpisodeBatch, Episodes, QueryDataset
from lightning_paf.data.readers.shapes import CLASSES, synthetic_subjects
from lightning_paf.data.readers.volumes import Subject, Task, Window, find_volumes, read_volume
from lightning_paf.data.samplers import batches_per_epoch
from lightning_paf.specs import DatasetSpec
from lightning_paf.utils.options import checked

SMALLEST = 16
"""Smallest height and width."""
SLICES = 8
"""Slices of a synthetic volume."""
_PARTS = {0: "val", 1: "test"}  # of each five volumes; the others are for training


class EpisodeDataModule(FolderDataModule):
    """Episodes of few-shot segmentation from volumes.

    Batches are `EpisodeBatch` with images in [0, 1]. A fifth of the volumes of `train_dir` is for validation, on
    `train_classes`. Without `test_dir`, a further fifth is for the test, on `test_classes`, which appear as background
    in training.

    Args:
        train_dir: Folder in the layout of the Medical Segmentation Decathlon, with `dataset.json`; null for synthetic
            volumes of two shapes of six classes.
        test_dir: Another such folder for the test.
        train_classes: Labels for training and validation.
        test_classes: Labels for the test.
        ways: Classes of an episode.
        shots: Support images of each class.
        channels: Channels of the slices: modalities, or copies of the only one.
        size: Height and width of the slices, which are resized.
        window: Intensities of black and white, in Hounsfield units for CT; null for the 0.5 and 99.5 % quantiles.
        subjects: Number of synthetic volumes.
        batch_size: Episodes in a global batch, over all devices and nodes.
        eval_batch_size: Queries in a batch in validation and test, per device.
        epoch: Episodes in an epoch.
        num_workers: Processes per device that draw episodes; 0 draws them in the main process.
        seed: Seed of the synthetic volumes and of all episodes.

    Raises:
        ValueError: An argument is out of range (at construction); a damaged volume, or a class on too few slices (in
            `prepare_data` or `setup`, before training).
    """

    linked = ("channels", "size")

    @staticmethod
    def spec_of(channels: int, size: int) -> DatasetSpec:
        """Return a specification without classes.

        Raises:
            ValueError: The number of channels or the size is too small.
        """
        checked("channels", channels, channels >= 1, "at least 1", 1, "--data")
        checked("size", size, size >= SMALLEST, f"at least {SMALLEST}", 32, "--data")
        return DatasetSpec("episodes", 0, size, (0.5,) * channels, (0.25,) * channels)

    def __init__(
        self,
        train_dir: Path | None = None,
        test_dir: Path | None = None,
        train_classes: tuple[int, ...] = (1, 2, 3, 4),
        test_classes: tuple[int, ...] = (5, 6),
        ways: int = 1,
        shots: int = 1,
        channels: int = 1,
        size: int = 32,
        window: Window = (-125.0, 275.0),
        subjects: int = 60,
        batch_size: int = 5,
        eval_batch_size: int = 16,
        epoch: int = 1000,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.spec = self.spec_of(channels, size)
        self.train_dir, self.test_dir = train_dir, test_dir
        self.classes = {"train": tuple(train_classes), "val": tuple(train_classes), "test": tuple(test_classes)}
        self.ways, self.shots, self.window, self.subjects = ways, shots, window, subjects
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.epoch, self.num_workers, self.seed = epoch, num_workers, seed
        self._fingerprints: dict[str, str] = {}
        self.check_loading("epoch", "ways", "shots", "subjects")
        checked("subjects", subjects, subjects >= 5, "at least 5, of which every fifth is for the test", 60, "--data")
        if window is not None:
            checked("window", tuple(window), window[0] < window[1], "increasing", "'[-125, 275]'", "--data")
        if test_dir is not None and train_dir is None:
            raise ValueError(
                f"train_dir must be set with test_dir, got test_dir={test_dir}. Pass --data.train_dir FOLDER."
            )
        self._check_classes()

    def prepare_data(self, stage: str | None = None) -> None:
        """Check the folders and labels before processes start.

        Those of the test are also checked for training.
        """
        super().prepare_data(stage)
        if self.test_dir is None:
            self._files("test")

    @readable()
    def setup(self, stage: str) -> None:
        """Read the volumes that a stage uses, and check that episodes can be drawn.

        Args:
            stage: One of fit, validate, test.
        """
        self._evaluated: dict[str, QueryDataset] = {}
        episode = (self.ways, self.shots, self.seed)
        for part in self._parts(stage):
            subjects = self._subjects(part)
            if part == "train":
                self._train_set = Episodes(subjects, self.classes[part], *episode)
                self._fingerprints = self._train_set.fingerprints()
            else:
                self._evaluated[part] = QueryDataset(subjects, self.classes[part], *episode, part)
                self._check_evaluated(part, len(self._evaluated[part]), "more volumes")

    def train_dataloader(self) -> DataLoader[RawBatch]:
        """Batches of `batch_size` episodes over all ranks."""
        batches = batches_per_epoch(len(self._train_set), self.batch_size, 1.0, self.epoch)
        return self.train_loader(self._train_set, [self.batch_size], batches)  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert images to floats in [0, 1] on the device."""
        if isinstance(batch, EpisodeBatch):
            return batch._replace(support=batch.support.float() / 255, query=batch.query.float() / 255)
        return batch

    def test_batches(self) -> tuple[QueryDataset, Iterator[EpisodeBatch]]:
        """Return all queries of the test, and their batches with images in [0, 1]."""
        self.prepare_data("test")
        self.setup("test")
        dataset = self._evaluated["test"]
        starts = range(0, len(dataset), self.eval_batch_size)
        rows = (range(start, min(start + self.eval_batch_size, len(dataset))) for start in starts)
        return dataset, (self.on_after_batch_transfer(dataset.__getitems__(row), 0) for row in rows)

    def _check_classes(self) -> None:
        """Check the labels of training and test."""
        for name in ("train", "test"):
            option, labels = f"{name}_classes", self.classes[name]
            checked(
                option,
                labels,
                min(labels, default=0) > 0 and len({*labels}) == len(labels),
                "different labels from 1",
                "'[1, 2]'",
                "--data",
            )
            if len(labels) < self.ways:
                raise ValueError(
                    f"{option} must hold at least the {self.ways} classes of an episode, got {[*labels]}. Pass a "
                    f"smaller --data.ways, or more --data.{option}."
                )

    def _files(self, part: str) -> Task | None:
        """List the files of a part; None for synthetic volumes."""
        name = "test" if part == "test" and self.test_dir is not None else "train"
        folder, wanted = self.test_dir if name == "test" else self.train_dir, self.classes[part]
        task = None if folder is None else find_volumes(Path(folder), f"--data.{name}_dir")
        known = set(range(1, CLASSES + 1)) if task is None else task.labels - {0}
        if not set(wanted) <= known:
            option = "test_classes" if part == "test" else "train_classes"
            raise ValueError(
                f"{option} must be among the labels {sorted(known)}, got {[*wanted]}. Pass --data.{option}."
            )
        return task if task is None or name == "test" else Task(task.labels, self._of_part(part, task.files))

    def _of_part(self, part: str, items: Sequence[Any]) -> Sequence[Any]:
        """Select the volumes of a part; none for the test if there is a `test_dir`."""
        others = _PARTS if self.test_dir is None else {0: "val"}
        chosen = [item for number, item in enumerate(items) if others.get(number % 5, "train") == part]
        if not chosen:
            raise ValueError(f"The number of volumes must be at least 5, got {len(items)}. Pass more volumes.")
        return chosen

    def _subjects(self, part: str) -> Sequence[Subject]:
        size, channels = self.spec.size, self.spec.channels
        task = self._files(part)
        if task is None:
            return self._of_part(part, synthetic_subjects(self.subjects, SLICES, channels, size, self.seed))
        return [read_volume(files, task.labels, self.window, channels, size) for files in task.files]
