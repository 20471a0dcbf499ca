"""Prototypes, cosine scores and Dice of few-shot segmentation.

Masks are 0 for background, 1 to W for the classes of an episode, 255 for ignored pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE = 20.0
"""Factor of the cosine in scores (Wang et al. 2019)."""
_IGNORED = 255


def masked_means(features: Tensor, masks: Tensor) -> Tensor:
    """Average features over the pixels of masks.

    Features are interpolated bilinearly to the size of the masks. This is done by the transposed interpolation of the
    masks, which gives the same sum without large feature maps.

    Args:
        features: (..., D, h, w).
        masks: bool (..., K, H, W).

    Returns:
        (..., K, D); zero for an empty mask.
    """
    weights = masks.to(features.dtype)
    rows, columns = (
        _interpolation(*sizes, features) for sizes in zip(features.shape[-2:], masks.shape[-2:], strict=True)
    )
    reduced = rows.T @ weights @ columns
    total = torch.einsum("...khw,...dhw->...kd", reduced, features)
    return total / (weights.sum((-2, -1)) + 1e-5).unsqueeze(-1)


def prototypes(features: Tensor, masks: Tensor) -> Tensor:
    """Mean features of background and classes, averaged over shots.

    Args:
        features: Of the support images (E, W, S, D, h, w).
        masks: (E, W, S, H, W).

    Returns:
        (E, W + 1, D), first the background, which is averaged over all support images.
    """
    ways = torch.arange(1, masks.shape[1] + 1, device=masks.device).view(1, -1, 1, 1, 1)
    means = masked_means(features, torch.stack([masks == 0, masks == ways], 3))
    return torch.cat([means[..., 0, :].mean((1, 2)).unsqueeze(1), means[..., 1, :].mean(2)], 1)


def cosine_scores(features: Tensor, centres: Tensor) -> Tensor:
    """`SCALE` times the cosine of features (E, D, h, w) and prototypes (E, K, D).

    Returns:
        (E, K, h, w), in [-SCALE, SCALE].
    """
    return SCALE * torch.einsum("edhw,ekd->ekhw", F.normalize(features, dim=1), F.normalize(centres, dim=2))


def pixel_cross_entropy(scores: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy (N,) of scores (N, K, H, W) and masks (N, H, W).

    It is averaged over the pixels that are not ignored.
    """
    losses = F.cross_entropy(scores, mask, ignore_index=_IGNORED, reduction="none")
    return losses.flatten(1).sum(1) / (mask != _IGNORED).flatten(1).sum(1).clamp_min(1)


def dense_margin(scores: Tensor, mask: Tensor) -> Tensor:
    """Loss (N,) of the dense adversary generation attack (Xie et al. 2017).

    The largest other score minus that of the true class, summed over pixels that are classified correctly.

    Args:
        scores: (N, K, ...).
        mask: Labels (N, ...).
    """
    labels = mask.masked_fill(mask == _IGNORED, 0).unsqueeze(1)
    other = scores.scatter(1, labels, -torch.inf).amax(1)
    margins = other - scores.gather(1, labels).squeeze(1)
    return (margins * ((margins < 0) & (mask != _IGNORED))).flatten(1).sum(1)


def dice_counts(predicted: Tensor, mask: Tensor) -> Tensor:
    """Sizes of intersection, prediction and mask of class 1, without ignored pixels.

    Args:
        predicted: Classes (N, H, W), or probabilities of class 1.
        mask: (N, H, W).

    Returns:
        (N, 3), with the dtype of `predicted`.
    """
    ours, true = predicted * (mask != _IGNORED), mask == 1
    return torch.stack([part.flatten(1).sum(1) for part in (ours * true, ours, true.to(predicted.dtype))], 1)


def dice(counts: Tensor) -> Tensor:
    """Dice coefficient (N,) of `dice_counts` (N, 3); 1 where both are empty."""
    sizes = (counts[:, 1] + counts[:, 2]).float()
    return torch.where(sizes > 0, 2 * counts[:, 0] / sizes.clamp_min(torch.finfo(torch.float32).tiny), 1.0)


def predicted_class(scores: Tensor) -> Tensor:
    """Mask (N, H, W) int64 of the pixels whose largest score is that of class 1."""
    return (scores.argmax(1) == 1).long()


def _interpolation(small: int, large: int, like: Tensor) -> Tensor:
    """Matrix (large, small) of the linear interpolation along one axis."""
    eye = torch.eye(small, dtype=like.dtype, device=like.device)
    return F.interpolate(eye.unsqueeze(0), large, mode="linear")[0].T
