"""Training losses of denoisers (Yan et al. 2022)."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.image_quality import psnr
from lightning_paf.functional.losses import squared_distance
from lightning_paf.objectives.checks import checked_weight

DenoisingLoss = tuple[Tensor, dict[str, Tensor]]
"""The loss, a scalar with its graph, and further scalars to log."""


class DenoisingObjective(nn.Module, ABC):
    """The loss of a denoiser D on noisy observations v of images x.

    Losses are sums over pixels and channels, divided by twice the number of images.
    """

    @abstractmethod
    def forward(self, model: nn.Module, noisy: Tensor, clean: Tensor, attack: Attack) -> DenoisingLoss:
        """Compute the loss of one batch.

        Args:
            model: Denoiser in training mode, from images (N, C, H, W) in [0, 1] to images.
            noisy: Observations v (N, C, H, W) in [0, 1].
            clean: Images x (N, C, H, W) in [0, 1].
            attack: The inner maximisation, which starts from `noisy`.

        Returns:
            The loss, and scalars to log.
        """


class NormalTraining(DenoisingObjective):
    """NT: `|D(v) - x|^2`, without adversarial noise."""

    def forward(self, model: nn.Module, noisy: Tensor, clean: Tensor, attack: Attack) -> DenoisingLoss:
        """Squared error of the denoised observation."""
        denoised = model(noisy)
        return _half_mean(squared_distance(denoised, clean)), {"psnr": _quality(denoised, clean)}


class VanillaAT(DenoisingObjective):
    """Vanilla adversarial training: `|D(v') - x|^2`, v' adversarial."""

    def forward(self, model: nn.Module, noisy: Tensor, clean: Tensor, attack: Attack) -> DenoisingLoss:
        """Squared error of the denoised adversarial observation."""
        denoised = model(attack(model, noisy, clean, loss=squared_distance))
        return _half_mean(squared_distance(denoised, clean)), {"psnr_adv": _quality(denoised, clean)}


class HybridAT(DenoisingObjective):
    """Hybrid adversarial training (HAT): error plus stability of the output.

    `1 / (1 + a) |D(v) - x|^2 + a / (1 + a) |D(v') - D(v)|^2` with the adversarial observation v', and gradients through
    both outputs. Yan, Zhang, Feng, Sugiyama, Tan, "Towards Adversarially Robust Deep Image Denoising", IJCAI 2022.

    Args:
        weight: a; 1 by default in the authors' code, 2 in their script for colour images. 0 is `NormalTraining`.

    Raises:
        ValueError: A negative weight.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = checked_weight("weight", weight, 1.0)

    def forward(self, model: nn.Module, noisy: Tensor, clean: Tensor, attack: Attack) -> DenoisingLoss:
        """Squared error, and squared distance of the two outputs."""
        adversarial = attack(model, noisy, clean, loss=squared_distance)
        denoised, attacked = model(noisy), model(adversarial)
        error, instability = squared_distance(denoised, clean), squared_distance(attacked, denoised)
        loss = _half_mean((error + self.weight * instability) / (1 + self.weight))
        return loss, {"psnr": _quality(denoised, clean), "psnr_adv": _quality(attacked, clean)}


def _half_mean(values: Tensor) -> Tensor:
    """Half of the mean over images (N,)."""
    return values.mean() / 2


def _quality(denoised: Tensor, clean: Tensor) -> Tensor:
    """Mean PSNR of a batch in dB."""
    return psnr(denoised.detach().float().clamp(0, 1), clean).mean()
