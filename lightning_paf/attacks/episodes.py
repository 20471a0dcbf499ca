"""Attacks on the query or the support of few-shot segmentation."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_paf.attacks.apgd import APGD
from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.catalogue.carlini_wagner import CarliniWagner
from lightning_paf.attacks.fab import FAB
from lightning_paf.attacks.fgsm import FGSM
from lightning_paf.attacks.pgd import PGD
from lightning_paf.attacks.square import Square
from lightning_paf.attacks.sub_attack import seeded
from lightning_paf.attacks.wrappers import WorstOf
from lightning_paf.data.episode_set import EpisodeBatch
from lightning_paf.functional.segmentation import dense_margin, dice, dice_counts, pixel_cross_entropy, predicted_class
from lightning_paf.nets.few_shot import FewShotSegmenter
from lightning_paf.types import Forward, PerExampleLoss, Radius

Target = Literal["query", "support"]
"""The attacked images of an episode."""
FOOLED_BELOW = 0.1
"""Dice below which an attack with its own losses has succeeded."""


class SMIA(PGD):
    """Stabilised medical image attack (SMIA): PGD on a stabilised loss.

    It increases `loss(x + d) - weight |loss(x + d) - loss(x + G d)|` with a Gaussian blur G. The published term
    compares predictions; this one compares losses, for any output. In the code of Pandey et al. (2022) the weight is 0,
    and the result is not projected.

    Qi, Gong, Song, "Stabilized Medical Image Attacks", ICLR 2021.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1].
        step_size: Length of a step, measured like `eps`.
        steps: Number of gradients.
        weight: Weight of the stabilising term, at least 0.
        **options: Further options of `PGD`.

    Raises:
        ValueError: A negative weight; see also `PGD`.
    """

    settings = (*PGD.settings, "weight")

    def __init__(
        self, eps: Radius = 0.035, *, step_size: Radius = 0.01, steps: int = 10, weight: float = 0.5, **options: Any
    ) -> None:
        super().__init__(eps, step_size=step_size, steps=steps, start="none", **options)
        self.weight = weight
        self.require(weight=0)

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run PGD on the stabilised loss."""

        def both(moved: Tensor) -> tuple[Any, Any]:
            return forward(_nan_as_zero(moved)), forward(_nan_as_zero(x + _blurred(moved - x)))

        def stabilised(outputs: tuple[Any, Any], target: Tensor) -> Tensor:
            sharp, smooth = (loss(output, target) for output in outputs)
            return sharp - self.weight * (sharp - smooth).abs()

        return super().perturb(both, x, y, stabilised)


class DiceLogits(nn.Module):
    """One episode as a classification of its attacked images into two classes.

    Class 0 stands for a Dice of `FOOLED_BELOW` or more: the logits are `(Dice - FOOLED_BELOW, 0)`. Attacks with their
    own losses work on it. The value is that of the predicted mask, the gradient that of the probabilities.

    Args:
        model: Segmenter.
        episode: A batch of one episode.
        target: Images that are the input.
    """

    def __init__(self, model: nn.Module, episode: EpisodeBatch, target: Target) -> None:
        super().__init__()
        self.model, self.episode, self.target = model, episode, target

    def forward(self, x: Tensor) -> Tensor:
        """Versions (N, C, H, W) of the attacked images to logits (N, 2)."""
        repeated = EpisodeBatch(*(part.expand(len(x), *part.shape[1:]) for part in self.episode))
        scores = self.model(with_images(repeated, self.target, x))
        soft = dice(dice_counts(scores.softmax(1)[:, 1], repeated.query_mask))
        hard = dice(dice_counts(predicted_class(scores), repeated.query_mask))
        value = soft + (hard - soft).detach() - FOOLED_BELOW
        return torch.stack([value, torch.zeros_like(value)], 1)


def paper_attacks(eps: float, pixels: int) -> dict[str, Attack]:
    """The seven attacks of Pandey et al. (2022).

    Their radius is `eps` in l-infinity, or the l2 length of a perturbation of `eps` in every pixel.

    Args:
        eps: Largest change of a pixel; 0.035 in the paper.
        pixels: Pixels and channels of the attacked images.
    """
    length, step = eps * math.sqrt(pixels), eps / 3.5
    together: list[Attack] = [APGD(eps, steps=5), FAB(eps, steps=5), Square(eps, queries=5)]
    return {
        "fgsm": FGSM(eps),
        "pgd": PGD(eps, step_size=step),
        "bim": PGD(eps, step_size=eps / 5, steps=5, start="none"),
        "cw": CarliniWagner(length, steps=20, searches=1, initial_c=10.0, abort_early=False),
        "dag": PGD(length, norm="l2", step_size=length / 20, steps=20, start="none", loss=dense_margin),
        "autoattack": WorstOf([*together, PGD(eps, step_size=step, steps=5)]),
        "smia": SMIA(eps, step_size=step),
    }


def attacked(model: FewShotSegmenter, batch: EpisodeBatch, attack: Attack, target: Target) -> EpisodeBatch:
    """Attack the queries or the support of a batch.

    All support images of an episode are attacked together, as channels of one image. An attack with its own losses
    works on `DiceLogits`, one episode at a time; others increase their own loss, by default the cross-entropy per
    pixel.
    """
    images = getattr(batch, target).flatten(1, -3)
    if not attack.fixed_loss:
        moved = attack(
            model,
            images,
            batch.query_mask,
            loss=attack.loss or pixel_cross_entropy,
            forward=_scores_of(model, batch, target),
        )
        return with_images(batch, target, moved)
    label = torch.zeros(1, dtype=torch.int64, device=images.device)
    found = [
        attack(DiceLogits(model, episode, target), image, label)
        for episode, image in zip(batch.separate(), images.split(1), strict=True)
    ]
    return with_images(batch, target, torch.cat(found))


def _scores_of(model: FewShotSegmenter, batch: EpisodeBatch, target: Target) -> Callable[[Tensor], Tensor]:
    """Return the scores as a function of the attacked images.

    The features of a support that is not attacked are computed once, in the first call, in the mode of the attack.
    """
    support: list[Tensor] = []

    def of_query(x: Tensor) -> Tensor:
        if not support:
            with torch.no_grad():
                support.append(model.encode(batch)[0])
        return model.scores(support[0], model.features(x), batch)

    return of_query if target == "query" else lambda x: model(with_images(batch, target, x))


def attacked_alone(model: FewShotSegmenter, batch: EpisodeBatch, attack: Attack, target: Target) -> EpisodeBatch:
    """Attack each episode of a batch alone, seeded by its number.

    The results do not depend on the batches. The random generators are restored.
    """
    found = []
    for number, episode in zip(batch.numbers.tolist(), batch.separate(), strict=True):
        with seeded(number, batch.query.device):
            found.append(attacked(model, episode, attack, target))
    return EpisodeBatch(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def with_images(batch: EpisodeBatch, target: Target, x: Tensor) -> EpisodeBatch:
    """Replace the attacked images of a batch.

    `x` holds queries (E, C, H, W), or the support with all images as channels (E, W S C, H, W).
    """
    replaced: Mapping[str, Any] = {target: x.view(len(x), *getattr(batch, target).shape[1:])}
    return batch._replace(**replaced)


def _nan_as_zero(x: Tensor) -> Tensor:
    """Copy x, so that NaN in its gradient counts as zero before a blur spreads it."""
    copy = x.clone()
    if copy.requires_grad:
        copy.register_hook(lambda gradient: torch.where(gradient.isnan(), 0, gradient))  # type: ignore[no-untyped-call]
    return copy


def _blurred(x: Tensor) -> Tensor:
    """Smooth images (N, C, H, W) with a binomial 3 x 3 kernel."""
    weights = x.new_tensor([1.0, 2.0, 1.0]) / 4
    kernel = (weights[:, None] * weights).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])
