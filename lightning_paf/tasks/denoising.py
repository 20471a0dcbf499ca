"""Training of image denoisers that resist adversarial noise."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn
from torch.optim import Adam
from torchmetrics import MeanMetric

from lightning_paf.attacks import Attack, ZeroMeanPGD, radius_text
from lightning_paf.data import PhotographDataModule
from lightning_paf.evaluation.denoising import (
    REAL,
    denoised,
    draw_denoised,
    observations,
    scores,
    without_uniform,
)
from lightning_paf.evaluation.scores import Row
from lightning_paf.functional.image_quality import psnr
from lightning_paf.nets.dncnn import DnCNN
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.classifier import penalty_of
from lightning_paf.nn.parameter_groups import DecayRule
from lightning_paf.nn.swap import Scope, swap_activations
from lightning_paf.objectives.denoising import DenoisingObjective, HybridAT
from lightning_paf.schedules import Schedule
from lightning_paf.tasks.base import default_optimizer
from lightning_paf.tasks.scored import ScoredTask
from lightning_paf.types import Batch, Radius

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PhotographBatch = tuple[list[Tensor], Tensor, list[Tensor]]
"""Clean photographs (C, H, W) in [0, 1], numbers (N,), and noisy ones, or none."""


class Denoiser(nn.Module):
    """A network from noisy images to denoised ones of the same shape.

    Args:
        net: Network from images (N, C, H, W) in [0, 1] to images.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Denoise images (N, C, H, W).

        Raises:
            ValueError: The network returns another shape.
        """
        cleaned: Tensor = self.net(x.to(next(self.net.parameters(), x).dtype))
        if cleaned.shape != x.shape:
            raise ValueError(
                f"{type(self.net).__name__} must return images of the shape of its input {tuple(x.shape)}, got "
                f"{tuple(cleaned.shape)}. Pass --model.net DnCNN."
            )
        return cleaned


class Denoising(ScoredTask):
    """Training of a denoiser on photographs with Gaussian noise (Yan et al. 2022).

    Each training patch gets noise of a random standard deviation (blind denoising), clipped to the pixel range. The
    validation logs `val/psnr`, on Gaussian noise, and `val/psnr_adv`, on Gaussian noise with ObsAtk of the same total
    energy, as means over photographs and `sigmas` in dB. `test` also evaluates uniform noise and SSIM, with intervals
    over photographs, or real noise alone with `--data.pairs`. It writes `denoising.json` and `denoising.png` to the run
    folder. The noise of an evaluation is the same for every epoch, run and number of devices.

    Args:
        net: Network from noisy images (N, C, H, W) to denoised ones, such as `DnCNN`.
        objective: Training loss: `NormalTraining`, `VanillaAT` or `HybridAT`.
        attack: The inner maximisation; null for ObsAtk with one step at `level`, as in the paper.
        level: Root mean square of ObsAtk in [0, 1]; 5/255 in the paper.
        attack_steps: Steps of ObsAtk in validation and test.
        noise: Range of the standard deviations in training, in grey levels; equal ends for one noise level.
        sigmas: Standard deviations in validation and test, in grey levels.
        activation: Replaces every ReLU, SiLU and GELU of the network, as in `RobustModule`; null keeps them.
        activation_scope: Part of the network that shares one activation.
        optimizer: Optimiser of all parameters.
        schedule: Factor of the learning rate over the training.
        decay: Parameters with weight decay; see `RobustModule`.
        init: Checkpoint of another training of the same network, whose weights this one starts with.
        channels: Image channels; follows `--data.channels`.
        patch: Size of the training patches; follows `--data.patch`.

    Raises:
        ValueError: A number out of range.
    """

    kind, stem = "denoiser", "denoising"
    data = PhotographDataModule
    plug_ins: ClassVar[Mapping[str, type]] = {"net": DnCNN, "objective": DenoisingObjective}
    instead_of_predict = "Run test, which draws denoised images."
    val_metrics = ("val/psnr", "val/psnr_adv")
    model: Denoiser

    def __init__(
        self,
        net: nn.Module,
        objective: DenoisingObjective | None = None,
        attack: Attack | None = None,
        level: Radius = Fraction(5, 255),
        attack_steps: int = 5,
        noise: tuple[float, float] = (0.0, 25.0),
        sigmas: tuple[float, ...] = (15.0, 25.0),
        activation: Activation | None = None,
        activation_scope: Scope = "network",
        optimizer: OptimizerCallable = lambda p: Adam(p, lr=1e-3),
        schedule: Schedule | None = None,
        decay: DecayRule = "weights",
        init: Path | None = None,
        channels: int = 1,
        patch: int = 50,
    ) -> None:
        super().__init__(optimizer, schedule, decay, init)
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()
        _check(noise, sigmas, level)
        example = torch.zeros(1, channels, patch, patch)
        ZeroMeanPGD.at_level(level, example[0], attack_steps)  # checks both
        if activation is not None:
            swap_activations(net, lambda: deepcopy(activation), scope=activation_scope, example=example)
        self.model = Denoiser(net)
        self.objective = objective or HybridAT()
        self.attack = attack or ZeroMeanPGD.at_level(level, example[0], steps=1)
        self.level, self.attack_steps = level, attack_steps
        self.noise, self.sigmas = noise, tuple(sigmas)
        self.val_psnr, self.val_psnr_adv = MeanMetric(), MeanMetric()
        self.load_init()

    def forward(self, x: Tensor) -> Tensor:
        """Denoise images (N, C, H, W) in [0, 1]."""
        cleaned: Tensor = self.model(x)
        return cleaned

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add noise to clean patches, and return the loss of the objective."""
        clean, low = batch[0], self.noise[0]
        sigma = low + (self.noise[1] - low) * torch.rand(len(clean), 1, 1, 1, device=clean.device)
        noisy = (clean + sigma / 255 * torch.randn_like(clean)).clamp(0, 1)
        error, logs = self.objective(self.model, noisy, clean, self.attack)
        loss: Tensor = error + penalty_of(self.model)
        self.record(loss, **logs)
        return loss

    def validation_step(self, batch: PhotographBatch, batch_idx: int) -> None:
        """Log the PSNR on Gaussian noise, and on Gaussian noise with ObsAtk."""
        metrics = {"gaussian": self.val_psnr, "obsatk": self.val_psnr_adv}
        for _, clean, noisy in self.observed(batch):
            for condition, image in noisy.items():
                if (noise := condition.partition("_")[0]) in metrics:
                    metrics[noise].update(psnr(denoised(self.model, image), clean))
        for name, metric in zip(self.val_metrics, metrics.values(), strict=True):
            self.log(name, metric, prog_bar=True, on_epoch=True, on_step=False, batch_size=len(batch[0]))

    def test_settings(self) -> dict[str, Any]:
        """Noise and attack of the test."""
        return {"sigmas": [*self.sigmas], "level": radius_text(self.level), "attack_steps": self.attack_steps}

    def evaluations(self, batch: PhotographBatch) -> Iterator[tuple[int, Sequence[Tensor], Callable[[], Row]]]:
        """Evaluate each photograph on all noises."""
        images, numbers, real = batch
        for place, number in enumerate(numbers.tolist()):
            one = images[place : place + 1], numbers[place : place + 1], real[place : place + 1]
            yield number, [*one[0], *one[2]], partial(self._scored, one)

    def draw_test(self) -> "Figure":
        """Draw the first photograph at the last sigma."""
        *_, (_, clean, noisy) = self.observed(self.test_batch(0))
        return draw_denoised([("", clean, without_uniform(noisy), self.model)], self.headline())

    def text_of(self, scores: Mapping[str, Any]) -> str:
        """Format PSNR before and after denoising, and SSIM, with their intervals."""
        parts = []
        for score, digits in (("psnr", 2), ("ssim", 3)):
            value, low, high = (scores[score][end] for end in ("value", "low", "high"))
            parts.append(f"{value:.{digits}f}" + ("" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"))
        return f"PSNR {scores['noisy_psnr']['value']:.2f} to {parts[0]} dB, SSIM {parts[1]}"

    def headline(self) -> str:
        """Title of the figure: the attack."""
        return f"ObsAtk {radius_text(self.level)}, {self.attack_steps} steps"

    def observed(self, batch: PhotographBatch) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
        """Yield each photograph: number, clean image, and noisy ones by condition.

        These are real ones if the batch has some, otherwise, for each sigma, those of `observations`.
        """
        images, numbers, real = batch
        for place, number in enumerate(numbers.tolist()):
            clean = images[place][None].to(self.device)
            if real:
                yield number, clean, {REAL: real[place][None].to(self.device)}
                continue
            for sigma in self.sigmas:
                noisy = observations(self.model, clean, sigma, self.level, self.attack_steps, seed=number)
                yield number, clean, {f"{noise}_{sigma:g}": image for noise, image in noisy.items()}

    def _scored(self, batch: PhotographBatch) -> Row:
        versions = ((clean, noisy.items()) for _, clean, noisy in self.observed(batch))
        return {name: scores(denoised(self.model, image), image, clean) for clean, of in versions for name, image in of}


def _check(noise: tuple[float, float], sigmas: tuple[float, ...], level: Radius) -> None:
    if not 0 <= noise[0] <= noise[1] <= 255:
        raise ValueError(
            f"noise must be an increasing range in [0, 255], got {[*noise]}. Pass --model.noise '[0, 25]', in grey "
            "levels."
        )
    if not sigmas or not all(255 * float(level) <= sigma <= 255 for sigma in sigmas):
        raise ValueError(
            f"sigmas must be grey levels from that of ObsAtk ({255 * float(level):g}) to 255, got {[*sigmas]}. Pass "
            "--model.sigmas '[15, 25]', or another --model.level."
        )


_adam = default_optimizer(Denoising, "_adam")
