"""FGSM adversarial training that hides pixels from the attack (Li et al., 2022)."""

from typing import Literal

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.checks import checked
from lightning_paf.objectives.standard import AdversarialCE

_PATTERN_SIZE = 64  # of the fixed mask, which larger images repeat


class PixelMask(AdversarialCE):
    """Adversarial training with attacks on images with some pixels set to zero.

    With `--model.attack FGSM` one of the tricks that keep FGSM training from catastrophic overfitting: Li, Liu, Wang,
    Zhou, Xie, "Bag of Tricks for FGSM Adversarial Training", arXiv 2022, who found that even a fixed mask suffices.
    The abstract gives no details; we chose ratio, modes and training input. All channels of a pixel are hidden
    together. Evaluation uses complete images.

    Args:
        ratio: Fraction of hidden pixels, in [0, 1); 0 is `AdversarialCE`, bit for bit.
        mask: `per_sample` hides other pixels in every image and step, `fixed` always the same random ones (drawn at
            the start, kept in the checkpoint), `grid` those of a regular pattern (a checkerboard at ratio 0.5; the
            ratio is rounded to 1/64).
        train_input: `masked` trains on the adversarial example of the masked image. `unmasked` adds its perturbation
            to the complete image.
        bn_statistics: As in `AdversarialCE`; with `mixed` half of the running statistics come from complete images.

    Attributes:
        thresholds: (H, W) in [0, 1), None in mode `per_sample`; pixels below the ratio are hidden.
    """

    thresholds: Tensor | None

    def __init__(
        self,
        ratio: float = 0.4,
        mask: Literal["per_sample", "fixed", "grid"] = "per_sample",
        train_input: Literal["masked", "unmasked"] = "masked",
        bn_statistics: Literal["mixed", "adversarial"] = "mixed",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(bn_statistics, label_smoothing)
        patterns = {"per_sample": lambda: None, "fixed": _random_pattern, "grid": _regular_pattern}
        checked("mask", mask, mask in patterns, "per_sample, fixed or grid", "per_sample")
        self.ratio = checked("ratio", ratio, 0 <= ratio < 1, "a fraction of the pixels in [0, 1)", 0.4)
        valid = train_input in ("masked", "unmasked")
        self.train_input = checked("train_input", train_input, valid, "masked or unmasked", "masked")
        self.register_buffer("thresholds", patterns[mask]())

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Adversarial images (N, C, H, W), computed with hidden pixels."""
        masked = x * self.kept(x)
        if self.train_input == "masked":
            return attack(model, masked, y)
        hidden = x - masked
        return attack(model, x, y, forward=lambda z: model(z - hidden))

    def kept(self, x: Tensor) -> Tensor:
        """Draw a mask (N or 1, 1, H, W): 1 for kept pixels, 0 for hidden ones."""
        height, width = x.shape[-2:]
        if self.ratio == 0:  # draws no random number, so those of the attack stay the same
            return x.new_ones(1, 1, height, width)
        if self.thresholds is None:
            thresholds = torch.rand(len(x), 1, height, width, device=x.device)
        else:
            rows, columns = (torch.arange(size, device=x.device) % len(self.thresholds) for size in (height, width))
            thresholds = self.thresholds[rows[:, None], columns][None, None]
        return (thresholds >= self.ratio).to(x)


def _random_pattern() -> Tensor:
    return torch.rand(_PATTERN_SIZE, _PATTERN_SIZE)


def _regular_pattern() -> Tensor:
    """Thresholds (8, 8) of ordered dithering (Bayer 1973).

    They spread the hidden pixels evenly at every ratio.
    """
    pattern = torch.zeros(1, 1)
    for _ in range(3):
        upper, lower = (torch.cat([4 * pattern + a, 4 * pattern + b], 1) for a, b in ((0, 2), (3, 1)))
        pattern = torch.cat([upper, lower])
    return pattern / pattern.numel()
