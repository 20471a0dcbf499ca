"""Training losses of few-shot segmentation (Pandey et al. 2022)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.episodes import Target, attacked
from lightning_paf.data.episode_set import EpisodeBatch
from lightning_paf.functional.segmentation import (
    dice,
    dice_counts,
    masked_means,
    pixel_cross_entropy,
    predicted_class,
    prototypes,
)
from lightning_paf.nets.few_shot import FewShotSegmenter
from lightning_paf.objectives.checks import checked, checked_weight

EpisodeLoss = tuple[Tensor, dict[str, Tensor]]
"""The loss, a scalar with its graph, and further scalars to log."""


class EpisodeObjective(nn.Module, ABC):
    """The loss of a segmenter on a batch of episodes."""

    @abstractmethod
    def forward(self, model: FewShotSegmenter, batch: EpisodeBatch, attack: Attack) -> EpisodeLoss:
        """Compute the loss of one batch.

        Args:
            model: Segmenter in training mode.
            batch: Episodes with images in [0, 1].
            attack: The inner maximisation.

        Returns:
            The loss, and scalars to log.
        """


class EpisodeCE(EpisodeObjective):
    """Cross-entropy of the query pixels: the training of PANet and PNODE."""

    def forward(self, model: FewShotSegmenter, batch: EpisodeBatch, attack: Attack) -> EpisodeLoss:
        """Mean over episodes and pixels that are not ignored."""
        return _cross_entropy(model(batch), batch)


class AdversarialEpisodeCE(EpisodeObjective):
    """Cross-entropy of attacked episodes: adversarial training.

    Args:
        target: Attacked images, `query` or `support`.
    """

    def __init__(self, target: Target = "query") -> None:
        super().__init__()
        self.target = target

    def forward(self, model: FewShotSegmenter, batch: EpisodeBatch, attack: Attack) -> EpisodeLoss:
        """Cross-entropy, on adversarial images."""
        loss, logs = _cross_entropy(model(attacked(model, batch, attack, self.target)), batch)
        return loss, {"dice_adv": logs["dice"]}


class RegularizedEpisodeCE(EpisodeObjective):
    """R-PNODE: cross-entropy plus consistency and cluster losses of the features.

    The consistency loss is `(1 - S_support) + (1 - S_query)`, where S is the mean cosine between the features of images
    with and without Gaussian noise, over pixels. The cluster loss is one minus the mean cosine between the prototypes
    and the mean features of the same classes in the query. Gradients flow through all features.

    Args:
        consistency: Weight of the consistency loss; 1 in the code of the paper.
        cluster: Weight of the cluster loss, which is named in the abstract but not in the code.
        noise: Standard deviation of the noise in [0, 1].
        multiplicative: Multiply pixels by `1 + noise`, instead of adding the noise.

    Raises:
        ValueError: A negative weight or standard deviation.
    """

    def __init__(
        self, consistency: float = 1.0, cluster: float = 1.0, noise: float = 0.1, multiplicative: bool = False
    ) -> None:
        super().__init__()
        self.consistency = checked_weight("consistency", consistency, 1.0)
        self.cluster = checked_weight("cluster", cluster, 1.0)
        self.noise = checked("noise", noise, noise >= 0, "at least 0", 0.1)
        self.multiplicative = multiplicative

    def forward(self, model: FewShotSegmenter, batch: EpisodeBatch, attack: Attack) -> EpisodeLoss:
        """Cross-entropy of the clean episodes, and both penalties."""
        support, query = model.encode(batch)
        loss, logs = _cross_entropy(model.scores(support, query, batch), batch)
        if self.consistency:
            noisy = model.encode(batch._replace(support=self._noisy(batch.support), query=self._noisy(batch.query)))
            logs["consistency"] = _distance(noisy[0], support, dim=3) + _distance(noisy[1], query, dim=1)
            loss = loss + self.consistency * logs["consistency"]
        if self.cluster:
            logs["cluster"] = cluster_loss(support, query, batch)
            loss = loss + self.cluster * logs["cluster"]
        return loss, {name: value.detach() for name, value in logs.items()}

    def _noisy(self, images: Tensor) -> Tensor:
        noise = self.noise * torch.randn_like(images)
        return (images + (images * noise if self.multiplicative else noise)).clamp(0, 1)


def cluster_loss(support: Tensor, query: Tensor, batch: EpisodeBatch) -> Tensor:
    """One minus the mean cosine of prototypes and query features, a scalar.

    Only classes that occur in the query count.

    Args:
        support: Features (E, W, S, D, h, w).
        query: Features (E, D, h, w).
        batch: The episodes.
    """
    classes = torch.arange(batch.support.shape[1] + 1, device=query.device).view(1, -1, 1, 1)
    masks = batch.query_mask.unsqueeze(1) == classes
    cosines = F.cosine_similarity(prototypes(support, batch.support_masks), masked_means(query, masks), dim=2)
    present = masks.flatten(2).any(2)
    return ((1 - cosines) * present).sum() / present.sum().clamp_min(1)


def _cross_entropy(scores: Tensor, batch: EpisodeBatch) -> EpisodeLoss:
    counts = dice_counts(predicted_class(scores), batch.query_mask)
    return pixel_cross_entropy(scores, batch.query_mask).mean(), {"dice": dice(counts).mean()}


def _distance(ours: Tensor, theirs: Tensor, dim: int) -> Tensor:
    """One minus the mean cosine of features, in [0, 2]."""
    return 1 - F.cosine_similarity(ours, theirs, dim=dim).mean()
