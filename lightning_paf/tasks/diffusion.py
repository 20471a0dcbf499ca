"""Training of a diffusion model of images."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torchmetrics import MeanMetric

from lightning_paf.functional.losses import hard_labels
from lightning_paf.nn.parameter_groups import DecayRule
from lightning_paf.runs.folder import run_folder_of
from lightning_paf.schedules import Schedule
from lightning_paf.specs import DatasetName, dataset_spec
from lightning_paf.synthesis.diffusion import DiffusionGenerator
from lightning_paf.synthesis.samplers import DDIM, NoiseSchedule, Prediction, Sampler, noising_process
from lightning_paf.synthesis.unet import UNet
from lightning_paf.tasks.base import Task, default_optimizer
from lightning_paf.types import Batch, images_and_labels
from lightning_paf.utils.figures import sheet_png
from lightning_paf.utils.files import write_whole

LEVELS = 5
"""Noise levels of the validation."""
SHEET_CLASSES = 20
"""Most rows in the picture of samples."""


class Denoiser(nn.Module):
    """A network with the shape of the images that it was trained on.

    Args:
        net: Network from noisy images (N, C, H, W), times (N,) and labels (N,) to the prediction (N, C, H, W).
        shape: Channels, height and width.
    """

    shape: Tensor

    def __init__(self, net: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("shape", torch.tensor(shape))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Predict the noise (N, C, H, W)."""
        predicted: Tensor = self.net(x, t, labels)
        return predicted


class Diffusion(Task):
    """Training of a diffusion model of images (Ho, Jain, Abbeel, NeurIPS 2020).

    The loss is the squared error of the predicted noise at a random time for each image. The validation logs it at
    fixed times with fixed noise, so that epochs are comparable, as `val/loss` and `val/loss_tTIME`. It also draws
    images, a row for each class: `samples.png` and `samples/epoch_XXXX.png` in the run folder. With
    `--averaging WarmupEMA`, both use the averaged weights.

    Args:
        net: Network from noisy images (N, C, H, W), times (N,) and labels (N,) to the prediction (N, C, H, W). The
            label `num_classes` means no class.
        dataset: Number of classes and image size; follows `--data.dataset`.
        num_classes: Only for own images; follows `--data.num_classes`.
        channels: Only for own images; follows `--data.channels`.
        size: Only for own images, their height; follows `--data.size`.
        conditional: Whether the network sees the classes.
        label_dropout: Fraction of the training images whose class the network does not see, for classifier-free
            guidance (Ho and Salimans 2022).
        noise: Variances of the added noise: `linear` (Ho et al. 2020) or `squaredcos_cap_v2` (Nichol, Dhariwal 2021).
        train_steps: Number of times.
        prediction: Output of the network: the noise, or v (Salimans and Ho 2022).
        sampler: Sampler of the images drawn in the validation, DDIM with 50 steps by default; `synthesize` can use
            another one.
        samples_per_class: Images drawn for each class in a validation; 0 draws none.
        optimizer: Optimiser of all parameters.
        schedule: Factor of the learning rate over the training.
        decay: Parameters with weight decay; see `RobustModule`.
        init: Checkpoint of another training of the same network, whose weights this one starts with.

    Raises:
        ValueError: A number out of range, or a sampler that does not fit.
    """

    kind = "image generator"
    plug_ins: ClassVar[Mapping[str, type]] = {"net": UNet}
    instead_of_predict = "Draw images with lightning-paf synthesize --from RUN."

    def __init__(
        self,
        net: nn.Module,
        dataset: DatasetName = "cifar10",
        num_classes: int | None = None,
        conditional: bool = True,
        label_dropout: float = 0.1,
        noise: NoiseSchedule = "linear",
        train_steps: int = 1000,
        prediction: Prediction = "epsilon",
        sampler: Sampler | None = None,
        samples_per_class: int = 8,
        optimizer: OptimizerCallable = lambda p: Adam(p, lr=2e-4),
        schedule: Schedule | None = None,
        decay: DecayRule = "weights",
        init: Path | None = None,
        channels: int | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__(optimizer, schedule, decay, init)
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()
        _check(label_dropout, samples_per_class)
        self.process = noising_process(noise, train_steps, prediction)
        self.sampler = sampler or DDIM()
        self.sampler.check(train_steps)
        spec = dataset_spec(dataset, num_classes, channels, size)
        self.model: Denoiser = Denoiser(net, (spec.channels, spec.size, spec.size))
        self.num_classes = spec.num_classes
        self.conditional = conditional
        self.label_dropout = label_dropout if conditional else 1.0
        self.samples_per_class = samples_per_class
        self.times = [(2 * level + 1) * train_steps // (2 * LEVELS) for level in range(LEVELS)]
        self.val_metrics = ("val/loss", *(f"val/loss_t{time}" for time in self.times))
        self.val_losses = nn.ModuleList(MeanMetric() for _ in range(LEVELS + 1))
        self.test_losses = nn.ModuleList(MeanMetric() for _ in range(LEVELS + 1))
        self._folder = Path()
        self.load_init()

    def generator(self, sampler: Sampler | None = None, guidance: float = 0.0) -> DiffusionGenerator:
        """Return the generator of images, on the device of the module.

        Args:
            sampler: By default that of the validation.
            guidance: Weight of classifier-free guidance.

        Raises:
            ValueError: The sampler or the guidance does not fit (see `DiffusionGenerator`).
        """
        channels, height, width = self.model.shape.tolist()
        return DiffusionGenerator(
            self.model.net,
            self.process,
            sampler or self.sampler,
            (channels, height, width),
            self.num_classes if self.conditional else None,
            self.num_classes if self.label_dropout else None,
            guidance,
        )

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Predict the noise (N, C, H, W) in images in [-1, 1]."""
        predicted: Tensor = self.model(x, t, labels)
        return predicted

    def trial_pass(self, images: Tensor) -> None:
        """Run the network on images (N, C, H, W) at time 0."""
        zeros = torch.zeros(len(images), dtype=torch.int64)
        self.model(images, zeros, zeros)

    def on_fit_start(self) -> None:
        """Seed the rank, and keep the run folder."""
        super().on_fit_start()
        # On all ranks.
        self._folder = run_folder_of(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Keep the shape of the images, which a dataset `npz` does not determine."""
        if batch_idx == 0:
            self.model.shape.copy_(torch.tensor(batch[0].shape[1:]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the squared error of the prediction, at a random time for each image."""
        x, y = images_and_labels(batch)
        times = torch.randint(self.process.config.num_train_timesteps, (len(x),), device=x.device)
        hidden = torch.rand(len(x), device=x.device) < self.label_dropout
        labels = hard_labels(y).masked_fill(hidden, self.num_classes)
        loss = self._losses(x, labels, times, torch.randn_like(x)).mean()
        self.record(loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss at fixed times with fixed noise, and draw images."""
        self._log_losses("val", self.val_losses, batch, batch_idx)
        fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if batch_idx == 0 and fitting and self.samples_per_class and self.trainer.is_global_zero:
            self._draw_samples()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss at fixed times with fixed noise."""
        self._log_losses("test", self.test_losses, batch, batch_idx)

    def _losses(self, x: Tensor, labels: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Return the mean squared error (N,) of the prediction for images in [0, 1]."""
        clean = 2 * x - 1
        target = noise
        if self.process.config.prediction_type == "v_prediction":
            target = self.process.get_velocity(clean, noise, times)
        predicted = self.model(self.process.add_noise(clean, noise, times), times, labels)
        return F.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))

    def _log_losses(self, stage: str, metrics: Iterable[Any], batch: Batch, batch_idx: int) -> None:
        """Log the mean losses of all images and for each time, in which they take turns."""
        x, y = images_and_labels(batch)
        levels = torch.arange(len(x), device=x.device) % LEVELS
        labels = hard_labels(y) if self.conditional else torch.full_like(levels, self.num_classes)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(batch_idx)).to(x)
        losses = self._losses(x, labels, torch.tensor(self.times, device=x.device)[levels], noise)
        parts = [losses, *(losses[levels == level] for level in range(LEVELS))]
        for name, metric, part in zip(self.val_metrics, metrics, parts, strict=True):
            metric.update(part)
            self.log(name.replace("val", stage, 1), metric, prog_bar=name == "val/loss")

    def _draw_samples(self) -> None:
        """Write a picture of samples, a row for each class."""
        rows, columns = min(self.num_classes, SHEET_CLASSES), self.samples_per_class
        labels = torch.arange(rows).repeat_interleave(columns)
        rng = torch.Generator().manual_seed(0)
        images = self.generator().sample(len(labels), labels if self.conditional else None, rng)
        tiles = images.reshape(rows, columns, *images.shape[1:]).permute(0, 1, 3, 4, 2)
        content = sheet_png(tiles.cpu().numpy())
        path = self._folder / "samples" / f"epoch_{self.current_epoch:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (path, self._folder / "samples.png"):
            write_whole(file, content)


def _check(label_dropout: float, samples_per_class: int) -> None:
    if not 0 <= label_dropout < 1:
        raise ValueError(f"label_dropout must be in [0, 1), got {label_dropout}. Pass --model.label_dropout 0.1.")
    if samples_per_class < 0:
        raise ValueError(
            f"samples_per_class must be at least 0, got {samples_per_class}. Pass --model.samples_per_class 8."
        )


_adam = default_optimizer(Diffusion, "_adam")
