"""Distillation of a training set into a few learned images."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lightning_paf.attacks import Attack
from lightning_paf.data import RobustDataModule
from lightning_paf.data.image_batches import as_floats
from lightning_paf.data.sources import ImageSet
from lightning_paf.nets import KernelClassifier
from lightning_paf.objectives import Objective
from lightning_paf.runs.folder import run_folder_of
from lightning_paf.schedules import Schedule
from lightning_paf.specs import DatasetName
from lightning_paf.speed.options import Speed
from lightning_paf.tasks.base import default_optimizer
from lightning_paf.tasks.classification import RobustModule
from lightning_paf.utils.figures import figure_png, open_figure
from lightning_paf.utils.files import npz_bytes, write_whole

SHEET_COLUMNS = 20
"""Most images of a class in the picture."""


class KIP(RobustModule):
    """Kernel inducing points, and adv-KIP: learned images for kernel regression.

    The weights are the images of a `KernelClassifier`. They start as training images, as many of each class, and are
    trained on batches of real images. With `SquaredError` this is KIP (Nguyen, Chen, Lee, ICLR 2021), with
    `AdversarialSquaredError` adv-KIP (Tsilivis, Su, Kempe, "Can we achieve robustness from data alone?", 2022).

    At the end of `fit`, and of `test` for the evaluated checkpoint, the run folder gets `distilled.npz`, a pool for
    `--data.synthetic`, and `distilled.png`, a row for each class. Pixels are rounded to 8 bits; with `learn_labels`,
    the label is the class at the start.

    Args:
        net: A `KernelClassifier` with its images.
        attack: The inner maximisation of the training.
        objective: The training loss.
        dataset: Number of classes; follows `--data.dataset`.
        num_classes: Only for own images; follows `--data.num_classes`.
        channels: Only for own images; follows `--data.channels`.
        size: Only for own images, their height; follows `--data.size`.
        clamp: Keep the images in [0, 1] after every step.
        optimizer: Optimiser of the images.
        schedule: Factor of the learning rate over the training.
        init: Checkpoint of another training whose images this one starts with.

    Raises:
        ValueError: Another network. Before training: images of another size than `net.image_size`, or fewer training
            images of a class than it gets.
        TypeError: Training without a `RobustDataModule`.
    """

    plug_ins: ClassVar[Mapping[str, type]] = {"net": KernelClassifier}

    def __init__(
        self,
        net: nn.Module,
        attack: Attack,
        objective: Objective,
        dataset: DatasetName = "cifar10",
        num_classes: int | None = None,
        clamp: bool = True,
        optimizer: OptimizerCallable = lambda p: Adam(p, lr=0.01),
        schedule: Schedule | None = None,
        init: Path | None = None,
        channels: int | None = None,
        size: int | None = None,
    ) -> None:
        if not isinstance(net, KernelClassifier):
            raise ValueError(
                f"net must be a KernelClassifier for KIP, got {type(net).__name__}. Pass --model.net KernelClassifier."
            )
        plain = Speed(channels_last=False, fused=False, folded=False, recompute=False)
        super().__init__(
            net,
            attack,
            objective,
            dataset,
            num_classes,
            normalize=False,  # the learned images are pixels
            optimizer=optimizer,
            schedule=schedule,
            decay="all",
            speed=plain,
            init=init,
            channels=channels,
            size=size,
        )
        self.clamp = clamp
        self._folder = Path()

    @property
    def net(self) -> KernelClassifier:
        """The kernel regression."""
        net = self.model.net
        assert isinstance(net, KernelClassifier)
        return net

    def trial_pass(self, images: Tensor) -> None:
        """Check the shape of the images only, since a kernel of many images takes minutes."""
        self.net.check_shape(images)

    def setup(self, stage: str) -> None:
        """Start from training images, unless those of `init` are loaded."""
        super().setup(stage)
        if stage == "fit" and self.init is None:
            self._start()

    def on_fit_start(self) -> None:
        """Seed the rank, and keep the run folder."""
        super().on_fit_start()
        self._keep_folder()

    def on_test_start(self) -> None:
        """Keep the run folder."""
        self._keep_folder()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Optimizer | LightningOptimizer, *args: object, **options: object
    ) -> None:
        """Run an optimiser step, and clamp the images."""
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **options)  # type: ignore[arg-type]
        if self.clamp:
            with torch.no_grad():
                self.net.images.clamp_(0, 1)

    def on_train_end(self) -> None:
        """Write the learned images."""
        self._write()

    def on_test_end(self) -> None:
        """Write the learned images of the checkpoint."""
        self._write()

    def _start(self) -> None:
        """Copy training images."""
        train, seed = _training_images(getattr(self.trainer, "datamodule", None))
        chosen = balanced_choice(train.labels, self.net.classes.cpu().numpy(), seed)
        images = as_floats(torch.from_numpy(train.images[chosen]))
        expected = self.net.images.shape
        if images.shape != expected:
            raise ValueError(
                f"image_size must be that of the {images.shape[2]} x {images.shape[3]} training images, which must be "
                f"square, got {expected[2]}. Pass --model.net.image_size {images.shape[2]}."
            )
        with torch.no_grad():
            self.net.images.copy_(images)

    def _keep_folder(self) -> None:
        # On all ranks.
        self._folder = run_folder_of(self.trainer)

    @rank_zero_only
    def _write(self) -> None:
        pool = self._folder / "distilled.npz"
        pool.parent.mkdir(parents=True, exist_ok=True)
        images, labels = self.net.images.detach().cpu(), self.net.classes.cpu().numpy()
        write_whole(pool, archive(images, labels))
        write_whole(pool.with_suffix(".png"), picture(images, labels))
        rank_zero_info(f"Learned images: {pool}, {pool.with_suffix('.png').name}")


def balanced_choice(labels: NDArray[np.int64], classes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Draw an image of each given class, without replacement.

    Args:
        labels: Labels of the training images (N,).
        classes: Wanted classes (n,).
        seed: Seed of the choice.

    Returns:
        Indices of images (n,) whose labels are `classes`.

    Raises:
        ValueError: A class has too few images.
    """
    rng, chosen = np.random.default_rng(seed), np.empty(len(classes), np.int64)
    pairs = [(np.flatnonzero(classes == label), np.flatnonzero(labels == label)) for label in np.unique(classes)]
    if missing := [int(wanted[len(found)]) for wanted, found in pairs if len(found) < len(wanted)]:
        label = classes[min(missing)]
        raise ValueError(
            f"support must be at most {min(missing)}, since class {label} has {(labels == label).sum()} training "
            f"images, got {len(classes)}. Pass --model.net.support {min(missing)} or less."
        )
    for wanted, found in pairs:
        chosen[wanted] = rng.choice(found, len(wanted), replace=False)
    return chosen


def archive(images: Tensor, labels: NDArray[np.int64]) -> bytes:
    """Content of an npz file with `image` uint8 (N, H, W, C) and `label` (N,)."""
    pixels = images.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
    return npz_bytes(image=pixels.contiguous().numpy(), label=labels)


def picture(images: Tensor, labels: NDArray[np.int64]) -> bytes:
    """Content of a PNG file with a labelled row of images (N, C, H, W) for each class."""
    tiles, classes = images.clamp(0, 1).permute(0, 2, 3, 1)[..., :3].numpy(), np.unique(labels)
    height, width = tiles.shape[1:3]
    columns = min(SHEET_COLUMNS, max(np.bincount(labels)))
    sheet = np.ones((len(classes), height + 1, columns, width + 1, 3), tiles.dtype)
    for row, label in zip(sheet, classes, strict=True):
        shown = tiles[labels == label][:columns]
        row[:height, : len(shown), :width] = shown.swapaxes(0, 1)
    side = 0.6 if len(classes) <= 20 else 0.3  # inches
    with open_figure(side * columns + 1.2, side * len(classes) + 0.4, "Learned images") as figure:
        axes = figure.subplots()
        axes.imshow(sheet.reshape(len(classes) * (height + 1), -1, 3), interpolation="nearest")
        axes.set(xticks=[], ylabel="class", yticks=(height + 1) * np.arange(len(classes)) + height / 2 - 0.5)
        axes.set_yticklabels(classes)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure_png(figure)


def _training_images(datamodule: LightningDataModule | None) -> tuple[ImageSet, int]:
    if not isinstance(datamodule, RobustDataModule):
        raise TypeError(
            f"KIP must start from the images of a RobustDataModule, got {type(datamodule).__name__}. Pass "
            "`datamodule=RobustDataModule(...)` to `fit`, or images with `init`."
        )
    real: ImageSet = datamodule.train_dataloader().dataset.real  # type: ignore[attr-defined]
    return real, datamodule.seed


_adam = default_optimizer(KIP, "_adam")
