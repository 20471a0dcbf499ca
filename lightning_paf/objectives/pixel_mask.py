"""FGSM adversarial training that hides pixels from the attack (Li et al., 2022)."""

from typing import Literal

import torch
from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.standard import AdversarialCE

_PATTERN_SIZE = 64  # of the fixed mask, which larger images repeat


class PixelMask(AdversarialCE):
    """Adversarial training whose attack starts from an image with a part of its pixels set to zero.

    With `--model.attack FGSM` one of the tricks that keep FGSM training from catastrophic overfitting: Li, Liu, Wang,
    Zhou, Xie, "Bag of Tricks for FGSM Adversarial Training", arXiv 2022, who found a mask that never changes enough.
    The abstract says no more; ratio, modes and what is trained on are ours. All channels of a pixel are hidden
    together. Evaluation is on whole images.

    Args:
        ratio: Share of the pixels that are hidden, in [0, 1); 0 is `AdversarialCE`, bit for bit.
        mask: `per_sample` hides other pixels in every image and step, `fixed` the same random ones throughout (drawn at
            the start, kept in the checkpoint), `grid` those of a regular pattern (a checkerboard at ratio 0.5; the
            ratio is rounded to 1/64).
        train_input: `masked` trains on what the attack makes of the masked image. `unmasked` adds the perturbation
            that it finds there to the whole image.
        bn_statistics: As in `AdversarialCE`; with `mixed` half of the running statistics come from whole images.
        label_smoothing: Share of the target that is spread evenly over all classes.

    Attributes:
        thresholds: (H, W) in [0, 1), None in mode `per_sample`; pixels below the ratio are hidden.

    Raises:
        ValueError: A ratio outside [0, 1), an unknown mask or train_input.
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
        if not 0 <= ratio < 1:
            raise ValueError(
                f"ratio must be a fraction of the pixels, in [0, 1), got {ratio}. Pass --model.objective.ratio 0.4."
            )
        if mask not in ("per_sample", "fixed", "grid"):
            raise ValueError(
                f"mask must be per_sample, fixed or grid, got {mask!r}. Pass --model.objective.mask per_sample."
            )
        if train_input not in ("masked", "unmasked"):
            raise ValueError(
                f"train_input must be masked or unmasked, got {train_input!r}. "
                "Pass --model.objective.train_input masked."
            )
        self.ratio = ratio
        self.train_input = train_input
        patterns = {"per_sample": lambda: None, "fixed": _random_pattern, "grid": _regular_pattern}
        self.register_buffer("thresholds", patterns[mask]())

    def images(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Adversarial images (N, C, H, W), attacked where pixels are hidden."""
        masked = x * self.kept(x)
        if self.train_input == "masked":
            return attack(model, masked, y)
        hidden = x - masked
        return attack(model, x, y, forward=lambda z: model(z - hidden))

    def kept(self, x: Tensor) -> Tensor:
        """A new mask for images (N, C, H, W): 1 where a pixel is kept, 0 where it is hidden; (N or 1, 1, H, W)."""
        height, width = x.shape[-2:]
        if self.ratio == 0:  # no random number is drawn: those of the attack stay the same
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
    """Thresholds (8, 8) of ordered dithering (Bayer 1973): at every ratio the hidden pixels lie evenly."""
    pattern = torch.zeros(1, 1)
    for _ in range(3):
        pattern = torch.cat(
            [torch.cat([4 * pattern, 4 * pattern + 2], 1), torch.cat([4 * pattern + 3, 4 * pattern + 1], 1)]
        )
    return pattern / pattern.numel()
