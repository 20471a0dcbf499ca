"""Evaluation of denoisers on random and adversarial noise of the same energy."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_paf.attacks import ZeroMeanPGD
from lightning_paf.functional.image_quality import psnr, ssim
from lightning_paf.functional.losses import squared_distance
from lightning_paf.types import Radius
from lightning_paf.utils.figures import open_figure, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = Mapping[str, float]
"""`psnr` and `ssim` of a denoised image, and `noisy_psnr` of the noisy one."""
MOST_PSNR = 100.0
"""PSNR in dB that equal images get, for finite means."""
NOISES = ("gaussian", "uniform", "obsatk")
REAL = "real"
"""Condition of photographs with real noise."""


def observations(
    model: nn.Module, clean: Tensor, sigma: float, level: Radius, steps: int, seed: int
) -> dict[str, Tensor]:
    """Add noise of the same energy: Gaussian, uniform, and Gaussian with ObsAtk.

    For ObsAtk, the noise level is divided: the standard deviation of the Gaussian noise is `sigma / 255 - level`, and
    the root mean square of the perturbation is `level`.

    Args:
        model: Attacked denoiser.
        clean: One image (1, C, H, W) in [0, 1].
        sigma: Standard deviation of the noise in grey levels, at least `255 level`.
        level: Root mean square of the perturbation, in [0, 1].
        steps: Steps of ObsAtk.
        seed: Seed of the noise, the same on every device.

    Returns:
        Noisy images (1, C, H, W) in [0, 1] by the names in `NOISES`.
    """
    rng = torch.Generator().manual_seed(seed)
    normal = torch.randn(clean.shape, generator=rng).to(clean)
    uniform = math.sqrt(3) * (2 * torch.rand(clean.shape, generator=rng) - 1).to(clean)
    gaussian, flat, weak = (
        (clean + std * noise).clamp(0, 1)
        for std, noise in ((sigma / 255, normal), (sigma / 255, uniform), (sigma / 255 - float(level), normal))
    )
    attack = ZeroMeanPGD.at_level(level, clean[0], steps)
    return dict(zip(NOISES, (gaussian, flat, attack(model, weak, clean, loss=squared_distance)), strict=True))


@torch.no_grad()
def denoised(model: nn.Module, noisy: Tensor) -> Tensor:
    """Denoise images (N, C, H, W), clipped to [0, 1]."""
    cleaned: Tensor = model(noisy).float().clamp(0, 1)
    return cleaned


def scores(cleaned: Tensor, noisy: Tensor, clean: Tensor) -> Scores:
    """Compare one denoised image (1, C, H, W) with the clean one."""
    values = {"psnr": psnr(cleaned, clean), "ssim": ssim(cleaned, clean), "noisy_psnr": psnr(noisy, clean)}
    return {name: min(float(value), MOST_PSNR) for name, value in values.items()}


def without_uniform(noisy: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The conditions that figures show."""
    return {name: image for name, image in noisy.items() if not name.startswith("uniform")}


def draw_denoised(rows: Sequence[tuple[str, Tensor, Mapping[str, Tensor], nn.Module]], headline: str) -> "Figure":
    """Draw a row for each denoiser: clean image, noisy images, and denoised ones.

    Args:
        rows: Name of the denoiser, clean image (1, C, H, W) in [0, 1], noisy images by condition, such as
            `gaussian_25`, and the denoiser.
        headline: Title.
    """
    columns = max(1 + 2 * len(noisy) for _, _, noisy, _ in rows)
    with open_figure(3 * columns, 3.4 * len(rows), headline) as figure:
        for line, (name, clean, noisy, model) in zip(
            figure.subplots(len(rows), columns, squeeze=False), rows, strict=True
        ):
            panels = [(": ".join(filter(None, (name, "clean"))), clean)]
            for condition, image in noisy.items():
                cleaned = denoised(model, image)
                panels += [(f"{condition}, {psnr(image, clean).item():.1f} dB", image)]
                panels += [(f"denoised, {psnr(cleaned, clean).item():.1f} dB", cleaned)]
            for axes, (title, image) in zip(line, panels, strict=False):
                pixels = image[0].permute(1, 2, 0).float().cpu().numpy()
                show_image(axes, pixels if pixels.shape[2] == 3 else pixels[..., 0], title, cmap="gray", vmin=0, vmax=1)
    return figure
